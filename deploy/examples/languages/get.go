// Prints a secret: go run get.go NAME
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

var agent = http.Client{
	Timeout: 15 * time.Second,
	Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			socket := os.Getenv("LATCHKEY_SOCKET")
			if socket == "" {
				socket = "/run/latchkey/agent.sock"
			}
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	},
}

func getSecret(name string) (string, error) {
	answer, err := agent.Get("http://localhost/v1/secrets/" + name)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		return "", fmt.Errorf("%s: %s", answer.Status, text)
	}
	var secret struct{ Value string }
	err = json.NewDecoder(answer.Body).Decode(&secret)
	return secret.Value, err
}

func main() {
	value, err := getSecret(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(value)
}
