// Prints a secret: java Get.java NAME
import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;
import static java.util.concurrent.TimeUnit.SECONDS;

import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;
import java.util.concurrent.CompletableFuture;

class Get {
    static String getSecret(String name) throws IOException {
        var path = System.getenv().getOrDefault("LATCHKEY_SOCKET", "");
        var socket = UnixDomainSocketAddress.of(path.isEmpty() ? "/run/latchkey/agent.sock" : path);
        try (var agent = SocketChannel.open(StandardProtocolFamily.UNIX)) {
            // A channel has no timeout, but connecting and reading fail once it is closed.
            CompletableFuture.delayedExecutor(15, SECONDS).execute(() -> {
                try { agent.close(); } catch (IOException none) { }
            });
            agent.connect(socket);
            // HTTP/1.0: the answer ends with the connection, so there is nothing to parse but its head.
            agent.write(UTF_8.encode("GET /v1/secrets/" + name + " HTTP/1.0\r\n"
                + "Host: localhost\r\nAccept: text/plain\r\n\r\n"));
            // One char for each byte: content-length counts bytes, and fewer arrive if the agent dies.
            var answer = new String(Channels.newInputStream(agent).readAllBytes(), ISO_8859_1);
            var headAndBody = answer.split("\r\n\r\n", 2);
            if (headAndBody.length < 2 || headAndBody[0].lines().noneMatch(
                    ("content-length: " + headAndBody[1].length())::equalsIgnoreCase)) {
                throw new IOException("the answer did not arrive whole");
            }
            var body = new String(headAndBody[1].getBytes(ISO_8859_1), UTF_8);
            if (!headAndBody[0].startsWith("HTTP/1.0 200 ")) {
                throw new IOException(headAndBody[0].lines().findFirst().orElse("") + " " + body);
            }
            return body;
        }
    }

    public static void main(String[] arguments) throws IOException {
        System.out.println(getSecret(arguments[0]));
    }
}
