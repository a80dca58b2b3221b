//! The only stand-in of these tests: a listener that greets as an old nats-server does. Package registries carry no
//! old server to run, and what is tested is the reading of its greeting alone.

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Says it is `version`, answers pings and nothing else; gone when dropped.
#[derive(Debug)]
pub struct OldServer {
    port: u16,
    task: JoinHandle<()>,
}

impl OldServer {
    /// Starts to listen.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(version: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let info = format!(
            "INFO {{\"server_id\":\"OLD\",\"server_name\":\"old\",\"version\":\"{version}\",\"proto\":1,\
             \"host\":\"127.0.0.1\",\"port\":{port},\"headers\":true,\"jetstream\":true,\"max_payload\":1048576,\
             \"client_id\":1}}\r\n"
        );
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let info = info.clone();
                tokio::spawn(async move {
                    // A client that leaves has read what it came for.
                    let _ = greet(socket, &info).await;
                });
            }
        });
        Ok(Self { port, task })
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for OldServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn greet(socket: TcpStream, info: &str) -> Result<()> {
    let (read, mut write) = socket.into_split();
    write.write_all(info.as_bytes()).await?;
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        if line.starts_with("PING") {
            write.write_all(b"PONG\r\n").await?;
        }
    }
    Ok(())
}
