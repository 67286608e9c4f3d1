//! TCP that sends back what it gets.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// 16 KiB: what a TLS record holds, and enough for a loopback transfer to be bound by copying.
const BUFFER_BYTES: usize = 16 << 10;

/// Sends the greeting, then everything back until the peer's end of stream, then its own.
pub(super) async fn serve(mut stream: TcpStream, greeting: Option<String>) {
    // The peer is told by its connection's end: there is nobody else to tell.
    let _ = echo(&mut stream, greeting).await;
}

async fn echo(stream: &mut TcpStream, greeting: Option<String>) -> std::io::Result<()> {
    if let Some(greeting) = greeting {
        stream.write_all(greeting.as_bytes()).await?;
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..length]).await?;
    }
}
