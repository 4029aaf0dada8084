//! `cargo xtask bench instructions`: instructions of the gateway for one request, counted by callgrind.
//! Unlike its time, they are nearly the same on a busy machine. What the kernel does is not counted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::peers::{self, Peer};
use crate::{binaries, shell, tools};

/// Requests that are sent one after another on one connection.
struct Scene {
    name: &'static str,
    /// Bytes of the prompt.
    size: usize,
    tokens: u32,
    stream: bool,
    /// Number of requests that are counted, after a fifth as many that are not.
    count: u32,
}

const SCENES: [Scene; 4] = [
    Scene { name: "small", size: 0, tokens: 8, stream: false, count: 2000 },
    Scene { name: "64 KB prompt", size: 64 << 10, tokens: 8, stream: false, count: 200 },
    Scene { name: "1 MB prompt", size: 1 << 20, tokens: 8, stream: false, count: 40 },
    Scene { name: "stream of 200", size: 0, tokens: 200, stream: true, count: 60 },
];

/// How long the gateway may take to find its engines.
const START: Duration = Duration::from_secs(30);

/// Prints the instructions of a request for each scene. `before` is another build of pd-router.
///
/// # Errors
/// A build, an installation or a server fails, or a request is not answered with 200.
pub(super) fn run(before: Option<&Path>) -> Result<()> {
    if shell::which("callgrind_control").is_none() {
        tools::install_packages(&["valgrind"]).context("valgrind is missing")?;
    }
    let programs = binaries::build_release()?;
    let _engines = peers::engines(&programs)?;
    let now = measure(&programs.pd_router)?;
    let before = before.map(measure).transpose()?;
    println!("| request | instructions | before | ratio |");
    println!("|---|---|---|---|");
    for (at, scene) in SCENES.iter().enumerate() {
        let before = before.as_ref().map(|counts| counts[at]);
        let ratio = before.map(|before| format!("{:.2}", now[at] / before)).unwrap_or_default();
        let before = before.map(|before| format!("{before:.0}")).unwrap_or_default();
        println!("| {} | {:.0} | {before} | {ratio} |", scene.name, now[at]);
    }
    Ok(())
}

/// The instructions of one request of each scene.
fn measure(program: &Path) -> Result<Vec<f64>> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind");
    let gateway = peers::under_callgrind(program, &out)?;
    let mut client = Client { connection: TcpStream::connect(&gateway.address)?, sent: 0 };
    let until = Instant::now() + START;
    while client.ask(&SCENES[0])? != 200 {
        if Instant::now() > until {
            bail!("the gateway did not answer with 200 within {START:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // Each dump is a file of its own, numbered from 1.
    let counts = SCENES.iter().zip(1..).map(|(scene, dump)| {
        client.ask_times(scene, scene.count / 5)?;
        control(&gateway, "--zero")?;
        client.ask_times(scene, scene.count)?;
        control(&gateway, "--dump")?;
        let file = out.with_extension(dump.to_string());
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(total(&text).context("callgrind wrote no total")? / f64::from(scene.count))
    });
    counts.collect()
}

fn control(gateway: &Peer, what: &str) -> Result<()> {
    shell::output(shell::command("callgrind_control").arg(what).arg(gateway.pid().to_string()))?;
    Ok(())
}

/// The number of instructions in a file of callgrind.
fn total(text: &str) -> Option<f64> {
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix("summary: ").or(line.strip_prefix("totals: ")))?
        .parse()
        .ok()
}

/// A client that has one request under way.
struct Client {
    connection: TcpStream,
    sent: u32,
}

impl Client {
    fn ask_times(&mut self, scene: &Scene, count: u32) -> Result<()> {
        for _ in 0..count {
            let status = self.ask(scene)?;
            if status != 200 {
                bail!("{}: status {status}", scene.name);
            }
        }
        Ok(())
    }

    /// Sends a chat completion, reads the whole answer, and returns its status.
    fn ask(&mut self, scene: &Scene) -> Result<u16> {
        self.sent += 1;
        let (number, padding) =
            (self.sent, "the quick brown fox jumps over it ".repeat(scene.size / 34));
        let Scene { tokens, stream, .. } = scene;
        let body = format!(
            r#"{{"model":"/models/Qwen3-32B","messages":[{{"role":"user","content":"number {number} {padding}"}}],"max_tokens":{tokens},"stream":{stream}}}"#
        );
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.connection.write_all([head, body].concat().as_bytes())?;
        let mut answer = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while !is_whole(&answer) {
            let read = self.connection.read(&mut buffer)?;
            if read == 0 {
                bail!("the gateway closed the connection");
            }
            answer.extend_from_slice(&buffer[..read]);
        }
        let status = answer.get(9..12).and_then(|status| std::str::from_utf8(status).ok());
        status.and_then(|status| status.parse().ok()).context("the answer has no status")
    }
}

/// Whether an answer has come to its end: its length, or the last chunk.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    match length.and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => answer.len() >= end + 4 + length,
        None => answer.ends_with(b"\r\n0\r\n\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_its_length_or_its_last_chunk() {
        let length = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert!(is_whole(length) && !is_whole(&length[..length.len() - 1]));
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        assert!(is_whole(chunked) && !is_whole(&chunked[..chunked.len() - 5]));
    }

    #[test]
    fn the_total_of_callgrind_is_read() {
        assert_eq!(total("version: 1\nsummary: 342430900\n\nfn=(0)\n"), Some(342_430_900.0));
        assert_eq!(total("version: 1\n"), None);
    }
}
