//! A publisher that speaks the protocol itself: it sends subjects and headers that no client
//! library
//! would, any bytes that the server takes.

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection without a login.
#[derive(Debug)]
pub struct RawPublisher {
    socket: TcpStream,
}

impl RawPublisher {
    /// Connects to the server at `url`, `nats://127.0.0.1:PORT`.
    ///
    /// # Errors
    /// The server is not there.
    pub async fn connect(url: &str) -> Result<Self> {
        let port: u16 = url.rsplit(':').next().context("a port")?.parse()?;
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket
            .write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n")
            .await?;
        Ok(Self { socket })
    }

    /// Sends a message. `headers` is the whole header block, its first line and the empty last one
    /// included.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn publish(
        &mut self,
        subject: &[u8],
        headers: Option<&[u8]>,
        body: &[u8],
    ) -> Result<()> {
        let mut bytes = Vec::new();
        match headers {
            Some(headers) => {
                bytes.extend_from_slice(b"HPUB ");
                bytes.extend_from_slice(subject);
                let (length, all) = (headers.len(), headers.len() + body.len());
                bytes.extend_from_slice(format!(" {length} {all}\r\n").as_bytes());
                bytes.extend_from_slice(headers);
            }
            None => {
                bytes.extend_from_slice(b"PUB ");
                bytes.extend_from_slice(subject);
                bytes.extend_from_slice(format!(" {}\r\n", body.len()).as_bytes());
            }
        }
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n");
        Ok(self.socket.write_all(&bytes).await?)
    }

    /// Sends a message with one header line.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn publish_with(&mut self, subject: &str, header: &[u8], body: &str) -> Result<()> {
        let block = [b"NATS/1.0\r\n", header, b"\r\n\r\n"].concat();
        self.publish(subject.as_bytes(), Some(&block), body.as_bytes())
            .await
    }

    /// Waits until the server has read everything.
    ///
    /// # Errors
    /// The server closed the connection.
    pub async fn flush(&mut self) -> Result<()> {
        self.socket.write_all(b"PING\r\n").await?;
        let mut said = Vec::new();
        let mut chunk = [0; 4096];
        while !said.windows(4).any(|four| four == b"PONG") {
            let length = self.socket.read(&mut chunk).await?;
            ensure!(length > 0, "the server closed the connection");
            said.extend_from_slice(chunk.get(..length).unwrap_or_default());
        }
        Ok(())
    }
}
