//! Prints a secret: cargo run -- NAME

use latchkey_client::Client;
use std::error::Error;
use std::io::Write;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).ok_or("which secret?")?;
    let secret = Client::from_env().get(&name).await?;
    std::io::stdout().write_all(secret.value.expose())?;
    Ok(())
}
