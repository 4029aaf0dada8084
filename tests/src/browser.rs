//! A headless Chromium, driven over the pipe of its DevTools protocol: what a person sees of a page.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::eventually::eventually;
use crate::folder::Folder;

/// Deadline of one command: a browser's first start on a busy machine takes a while.
const ANSWER: Duration = Duration::from_secs(60);
/// Deadline of what a page shall show.
const SHOWN: Duration = Duration::from_secs(60);

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>;

/// A browser with one page. Dropping it ends it.
pub struct Browser {
    commands: tokio::sync::Mutex<ChildStdin>,
    next: AtomicU64,
    session: String,
    waiting: Waiting,
    errors: Arc<Mutex<Vec<String>>>,
    child: Child,
    _profile: Folder,
}

/// The size of a page's window in CSS pixels, and whether its reader prefers dark.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
}

fn program() -> PathBuf {
    std::env::var_os("CHROMIUM_BIN").map(PathBuf::from).expect(
        "CHROMIUM_BIN is not set; run `cargo xtask test page`, which finds or installs Chromium",
    )
}

impl Browser {
    /// Starts it, in the network namespace at a path if there is one.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start(namespace: Option<&str>) -> Browser {
        let profile = Folder::new("browser");
        // The shell hands the pipes on as files 3 and 4, which the protocol uses.
        let script = "exec \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]);
        if let Some(path) = namespace {
            command.arg("nsenter").arg(format!("--net={path}"));
        }
        command
            .arg(program())
            .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
            .args(["--no-first-run", "--hide-scrollbars", "--disable-dev-shm-usage"])
            .args(["--disable-background-networking", "--disable-component-update"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().expect("starting a browser");
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let mut browser = Browser {
            commands: tokio::sync::Mutex::new(stdin),
            next: AtomicU64::new(1),
            session: String::new(),
            waiting: Arc::default(),
            errors: Arc::default(),
            child,
            _profile: profile,
        };
        tokio::spawn(read(stdout, Arc::clone(&browser.waiting), Arc::clone(&browser.errors)));
        let page = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": page["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser
    }

    /// Sends a command and returns its result.
    ///
    /// # Panics
    /// The browser refuses it, or does not answer.
    pub async fn call(&self, method: &str, params: Value) -> Value {
        let result = self.try_call(method, params).await;
        result.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn try_call(&self, method: &str, params: Value) -> Result<Value, String> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().expect("no reader panics").insert(id, sender);
        let bytes = [message.to_string().as_bytes(), b"\0"].concat();
        self.commands.lock().await.write_all(&bytes).await.expect("the browser runs");
        let answer = timeout(ANSWER, answer).await.expect("the browser answers in time");
        answer.expect("the browser has ended")
    }

    pub async fn look(&self, look: Look) {
        let Look { width, height, dark } = look;
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    pub async fn open(&self, url: &str) {
        self.call("Page.navigate", json!({"url": url})).await;
    }

    /// The value of an expression in the page, which may be a promise.
    ///
    /// # Panics
    /// The expression throws.
    pub async fn eval(&self, expression: &str) -> Value {
        let value = self.try_eval(expression).await;
        value.unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    async fn try_eval(&self, expression: &str) -> Result<Value, String> {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.try_call("Runtime.evaluate", params).await?;
        match &answer["exceptionDetails"] {
            Value::Null => Ok(answer["result"]["value"].clone()),
            thrown => Err(thrown.to_string()),
        }
    }

    /// Waits until an expression is true in the page.
    ///
    /// # Panics
    /// It is not in time; the message has the page's text.
    pub async fn until(&self, what: &str, expression: &str) {
        // It throws while the page is not yet there.
        let is_so = eventually_or_none(async || {
            (self.try_eval(expression).await == Ok(Value::Bool(true))).then_some(())
        });
        if is_so.await.is_none() {
            let text = self.eval("document.body.innerText").await;
            panic!("not within {SHOWN:?}: {what}\n{}", text.as_str().unwrap_or_default());
        }
    }

    /// Presses `Tab`, `Enter` or `Escape`.
    pub async fn press(&self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Escape" => 27,
            _ => 13,
        };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let params = json!({"type": kind, "key": key, "code": key, "text": text,
                "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", params).await;
        }
    }

    /// A picture of the whole page as WebP.
    ///
    /// # Panics
    /// The browser sends no base64.
    pub async fn picture(&self) -> Vec<u8> {
        let size = self.call("Page.getLayoutMetrics", json!({})).await;
        let size = &size["cssContentSize"];
        let clip =
            json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let params = json!({"format": "webp", "quality": 82, "captureBeyondViewport": true, "clip": clip,
            "optimizeForSpeed": false});
        let answer = self.call("Page.captureScreenshot", params).await;
        BASE64_STANDARD.decode(answer["data"].as_str().expect("a picture")).expect("base64")
    }

    /// Errors that the page has caused so far: exceptions, refusals of its policy, failed loads.
    ///
    /// # Panics
    /// Never: no thread panics while it holds the list.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().expect("no reader panics").clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its helpers are in a group of its own.
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            _ = kill(Pid::from_raw(-id), Signal::SIGKILL);
        }
    }
}

async fn eventually_or_none(mut condition: impl AsyncFnMut() -> Option<()>) -> Option<()> {
    let waited = timeout(SHOWN, eventually("the page shows it", SHOWN * 2, &mut condition));
    waited.await.ok()
}

/// Hands each answer to who waits for it, until the browser ends.
async fn read(stdout: ChildStdout, waiting: Waiting, errors: Arc<Mutex<Vec<String>>>) {
    let mut stdout = BufReader::new(stdout);
    let mut bytes = Vec::new();
    while matches!(stdout.read_until(0, &mut bytes).await, Ok(count) if count > 0) {
        bytes.pop();
        let message: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        bytes.clear();
        if let Some(id) = message["id"].as_u64() {
            let answer = match &message["error"] {
                Value::Null => Ok(message["result"].clone()),
                error => Err(error.to_string()),
            };
            if let Some(sender) = waiting.lock().expect("no reader panics").remove(&id) {
                _ = sender.send(answer);
            }
        } else if let Some(error) = error_of(&message) {
            errors.lock().expect("no reader panics").push(error);
        }
    }
    waiting.lock().expect("no reader panics").clear();
}

fn error_of(event: &Value) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
        "Log.entryAdded" if params["entry"]["level"] == "error" => {
            Some(params["entry"].to_string())
        }
        "Runtime.consoleAPICalled" if params["type"] == "error" => Some(params["args"].to_string()),
        _ => None,
    }
}
