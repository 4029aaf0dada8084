//! The command `top`: what a gateway serves now, and where the time to first token goes.
//!
//! It reads `/fleet` and `/requests` of an admin port, so that it shows what a script can read there too.

mod report;
mod text;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use http::header::AUTHORIZATION;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::Value;

use self::report::TopReport;
use crate::config::duration;
use crate::http_client::response::{ReadLimits, read_body};
use crate::http_client::{HttpClient, Protocol, whole};

/// Time for the gateway to answer one page.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a page, in bytes: a fleet of a thousand workers has some megabytes.
const MAX_PAGE: usize = 256 << 20;
const FLEET: PathAndQuery = PathAndQuery::from_static("/fleet");
/// The requests of which the parts are shown.
const REQUESTS: PathAndQuery = PathAndQuery::from_static("/requests?limit=1000");
const FAILURES: PathAndQuery = PathAndQuery::from_static("/requests?failed=1&limit=10");
/// Clears the terminal and moves the cursor to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Flags of `pd-router top`.
#[derive(Debug, Args)]
#[command(next_help_heading = "What to show")]
pub struct TopFlags {
    /// Admin port of the gateway (its --admin-listen).
    #[arg(long, default_value = "127.0.0.1:9901", value_name = "HOST:PORT")]
    pub gateway: Authority,
    /// File with the bearer token of the admin port (its --admin-token-file).
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print once and end. Without this flag, the screen is cleared and written again until Ctrl-C.
    #[arg(long)]
    pub once: bool,
    /// Print one JSON object instead of text. Requires --once.
    #[arg(long, requires = "once")]
    pub json: bool,
    /// Interval at which the screen is written again.
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "DURATION")]
    pub interval: Duration,
}

/// Prints the report, once or until the process is ended.
///
/// # Errors
/// The token file cannot be read, or standard output is closed. With `--once`, also: the gateway does not
/// answer, or its answer is not understood.
pub async fn run(flags: TopFlags) -> Result<()> {
    let source = AdminPages::new(&flags)?;
    loop {
        let page = match source.report().await {
            Ok(report) if flags.json => serde_json::to_string(&report)? + "\n",
            Ok(report) => text::page(&report),
            // A gateway that restarts is asked again.
            Err(error) if !flags.once => format!("{error:#}\n"),
            Err(error) => return Err(error),
        };
        let clear = if flags.once { "" } else { CLEAR };
        let mut out = std::io::stdout().lock();
        // `print!` would panic where the reader of a pipe is gone.
        write!(out, "{clear}{page}").and_then(|()| out.flush()).context("standard output")?;
        drop(out);
        if flags.once {
            return Ok(());
        }
        tokio::time::sleep(flags.interval).await;
    }
}

/// The pages of one admin port.
struct AdminPages {
    http: HttpClient,
    gateway: Authority,
    headers: HeaderMap,
}

impl AdminPages {
    fn new(flags: &TopFlags) -> Result<AdminPages> {
        let mut headers = HeaderMap::new();
        if let Some(path) = &flags.token_file {
            let place = || format!("--token-file {}", path.display());
            let token = std::fs::read_to_string(path).with_context(place)?;
            let mut value =
                HeaderValue::try_from(format!("Bearer {}", token.trim())).with_context(place)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = HttpClient::without_pool(ANSWER_TIMEOUT);
        Ok(AdminPages { http, gateway: flags.gateway.clone(), headers })
    }

    async fn report(&self) -> Result<TopReport> {
        let fleet = self.page(FLEET).await?;
        let fleet = fleet.context("/fleet: there is no such page")?;
        let requests = self.page(REQUESTS).await?;
        let failures = self.page(FAILURES).await?;
        Ok(TopReport::of(&fleet, requests.as_ref(), failures.as_ref()))
    }

    /// A page as JSON; `None` if the gateway has none.
    async fn page(&self, path: PathAndQuery) -> Result<Option<Value>> {
        let place = format!("--gateway {}: {}", self.gateway, path.path());
        let page = tokio::time::timeout(ANSWER_TIMEOUT, self.fetch(path)).await;
        let timed_out = || format!("{place}: no answer within {ANSWER_TIMEOUT:?}");
        let (status, body) = page.with_context(timed_out)?.with_context(|| place.clone())?;
        match status {
            StatusCode::OK => Ok(Some(serde_json::from_slice(&body).context(place)?)),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => {
                bail!("{place}: a bearer token is needed; --token-file names its file")
            }
            other => bail!("{place}: {other}: {}", String::from_utf8_lossy(&body).trim()),
        }
    }

    async fn fetch(&self, path: PathAndQuery) -> Result<(StatusCode, Bytes)> {
        let (gateway, headers) = (self.gateway.clone(), self.headers.clone());
        let empty = whole(Bytes::new());
        let sent = self.http.send(Protocol::Http1, gateway, Method::GET, path, headers, empty);
        let answer = sent.await?;
        let status = answer.status();
        Ok((status, read_body(answer.into_body(), &ReadLimits::size(MAX_PAGE)).await?))
    }
}
