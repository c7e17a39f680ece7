// Prints a secret as JSON: java GetThroughProxy.java NAME
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;

class GetThroughProxy {
    static String getSecret(String name) throws IOException, InterruptedException {
        HttpClient client = HttpClient.newHttpClient();
        HttpRequest request = HttpRequest.newBuilder()
            .uri(URI.create("http://localhost:8080/v1/secrets/" + name))
            .timeout(Duration.ofSeconds(15))
            .build();
        HttpResponse<String> response = client.send(request, BodyHandlers.ofString());
        if (response.statusCode() != 200) throw new IOException(response.body());
        return response.body(); // {"name": …, "value": …}, for the JSON library of your choice
    }

    public static void main(String[] arguments) throws Exception {
        System.out.println(getSecret(arguments[0]));
    }
}
