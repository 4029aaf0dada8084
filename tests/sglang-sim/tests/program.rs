//! The program: its first line, its signals, its exit status.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod pair;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pair::*;
use serde_json::json;

/// A child process that is killed when the test ends.
struct Program {
    child: Child,
    line: String,
}

impl Program {
    fn start(arguments: &[&str]) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sglang-sim"))
            .args(["--port", "0", "--bootstrap-port", "0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Program { child, line }
    }

    fn address(&self) -> std::net::SocketAddr {
        self.line.split(' ').nth(4).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_prints_that_it_is_ready_and_exits_with_0_on_sigterm() {
    let mut prefill = Program::start(&["--role", "prefill", "--host", "127.0.0.1"]);
    assert!(prefill.line.starts_with("sglang-sim prefill ready on 127.0.0.1:"), "{}", prefill.line);
    assert!(prefill.line.contains(" bootstrap 127.0.0.1:"));
    kill(Pid::from_raw(prefill.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(prefill.child.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_scripted_death_exits_with_137() {
    let mut unified = Program::start(&["--role", "unified", "--instant", "--engine", "0.5"]);
    let address = unified.address();
    let ready = get_at(address, "/ready").await;
    assert_eq!(ready.status, 200);
    let script = json!({"action": "die_before_head"});
    let set = read(send(address, "/sim/script", &script).await.unwrap()).await;
    assert_eq!(set.status, 200);
    assert!(send(address, "/generate", &generate("a", 2)).await.is_err());
    assert_eq!(unified.child.wait().unwrap().code(), Some(137));
}
