// Prints a secret: node get_undici.mjs NAME
import { Agent, request } from "undici";

const socketPath = process.env.LATCHKEY_SOCKET || "/run/latchkey/agent.sock";
const dispatcher = new Agent({ connect: { socketPath } });

async function getSecret(name) {
  const { statusCode, body } = await request(`http://localhost/v1/secrets/${name}`, {
    dispatcher,
    signal: AbortSignal.timeout(15_000),
  });
  if (statusCode !== 200) throw new Error(`${statusCode} ${await body.text()}`);
  return (await body.json()).value;
}

console.log(await getSecret(process.argv[2]));
await dispatcher.close();
