// Prints a secret: dotnet run NAME
using System.Net.Http.Json;
using System.Net.Sockets;

using var agent = new HttpClient(new SocketsHttpHandler
{
    ConnectCallback = async (_, cancelled) =>
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        var path = Environment.GetEnvironmentVariable("LATCHKEY_SOCKET");
        if (string.IsNullOrEmpty(path)) path = "/run/latchkey/agent.sock";
        await socket.ConnectAsync(new UnixDomainSocketEndPoint(path), cancelled);
        return new NetworkStream(socket, ownsSocket: true);
    },
})
{ BaseAddress = new Uri("http://localhost"), Timeout = TimeSpan.FromSeconds(15) };

async Task<string> GetSecret(string name)
{
    using var answer = await agent.GetAsync($"/v1/secrets/{name}");
    if (!answer.IsSuccessStatusCode)
        throw new HttpRequestException($"{answer.StatusCode}: {await answer.Content.ReadAsStringAsync()}");
    return (await answer.Content.ReadFromJsonAsync<Secret>())!.Value;
}

Console.WriteLine(await GetSecret(args[0]));

record Secret(string Value);
