<?php // Prints a secret: php get.php NAME
function get_secret(string $name): string {
    $agent = curl_init("http://localhost/v1/secrets/$name");
    curl_setopt_array($agent, [
        CURLOPT_UNIX_SOCKET_PATH => getenv('LATCHKEY_SOCKET') ?: '/run/latchkey/agent.sock',
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 15,
    ]);
    $body = curl_exec($agent);
    if ($body === false) {
        throw new RuntimeException(curl_error($agent));
    }
    $status = curl_getinfo($agent, CURLINFO_RESPONSE_CODE);
    if ($status !== 200) {
        throw new RuntimeException("$status $body");
    }
    return json_decode($body, true, flags: JSON_THROW_ON_ERROR)['value'];
}

echo get_secret($argv[1]), "\n";
