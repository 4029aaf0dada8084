//! One process of the demo: its output is kept, its early end is an error, its drop ends it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::workspace;

/// Lines kept of what a process prints.
const KEPT_LINES: usize = 40;

#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    printed: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub(super) fn start(name: &str, program: &Path, words: &[String]) -> Result<Process> {
        let mut child = Command::new(program)
            .args(words)
            .current_dir(workspace::root())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let printed = Arc::default();
        keep(child.stdout.take().context("stdout is a pipe")?, &printed);
        keep(child.stderr.take().context("stderr is a pipe")?, &printed);
        Ok(Process { name: name.to_owned(), child, printed })
    }

    /// The address in the process's name.
    pub(super) fn ip(&self) -> Result<IpAddr> {
        let last = self.name.split(' ').next_back().unwrap_or_default();
        last.parse().with_context(|| format!("no address in `{}`", self.name))
    }

    /// Waits until a GET there is a 200.
    pub(super) async fn answers(
        &mut self,
        address: SocketAddr,
        path: &str,
        patience: Duration,
    ) -> Result<()> {
        let asked = tokio::time::timeout(patience, async {
            while !get_is_ok(address, path).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        tokio::select! {
            asked = asked => match asked {
                Ok(()) => Ok(()),
                Err(_) => bail!("{} did not get ready\n{}", self.name, self.tail()),
            },
            status = self.child.wait() => bail!(self.last_words(status)),
        }
    }

    pub(super) fn tail(&self) -> String {
        self.printed.lock().map(|lines| lines.join("\n")).unwrap_or_default()
    }

    fn last_words(&self, status: std::io::Result<ExitStatus>) -> String {
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        format!("{} ended ({status})\n{}", self.name, self.tail())
    }
}

/// Returns, with an error, when any of the processes has ended.
pub(super) async fn first_to_end(processes: &mut [Process]) -> Result<()> {
    loop {
        for process in &mut *processes {
            if let Some(status) = process.child.try_wait()? {
                bail!(process.last_words(Ok(status)));
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn keep(stream: impl AsyncRead + Unpin + Send + 'static, printed: &Arc<Mutex<Vec<String>>>) {
    let printed = Arc::clone(printed);
    // Ends with the pipe, that is with the process.
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Ok(mut printed) = printed.lock() else { return };
            if printed.len() == KEPT_LINES {
                printed.remove(0);
            }
            printed.push(line);
        }
    });
}

async fn get_is_ok(address: SocketAddr, path: &str) -> bool {
    let ask = async {
        let mut socket = TcpStream::connect(address).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.ok()?;
        let mut start = [0; 12];
        socket.read_exact(&mut start).await.ok()?;
        (&start == b"HTTP/1.1 200").then_some(())
    };
    tokio::time::timeout(Duration::from_secs(2), ask).await.ok().flatten().is_some()
}
