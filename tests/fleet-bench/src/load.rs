//! Open-loop load: every request is sent when it is due, whatever became of those before it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;

use crate::client::{self, Client, Timing};
use crate::record::Sample;
use crate::workload::Request;

/// Time before the first request, in which all tasks start.
const HEAD_START: Duration = Duration::from_millis(200);

/// All requests of a run.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) samples: Vec<Sample>,
    pub(crate) wall: Duration,
    /// The longest delay of a sending.
    pub(crate) late: Duration,
}

/// Sends the requests to `urls`, of which each request draws one, and waits for all responses.
///
/// # Errors
/// A task fails, which is a fault of this program.
pub(crate) async fn run(
    client: &Client,
    urls: &[String],
    model: &str,
    requests: &[Request],
    limit: Duration,
) -> Result<Load> {
    let urls: Arc<[String]> = urls.into();
    let bodies: Vec<Bytes> = requests
        .iter()
        .map(|request| client::chat(model, &request.prompt, request.output_tokens))
        .collect();
    let start = Instant::now() + HEAD_START;
    let mut tasks = Vec::with_capacity(requests.len());
    for (request, body) in requests.iter().zip(bodies) {
        let (client, urls) = (client.clone(), Arc::clone(&urls));
        let due = start + request.at;
        let url = request.draw % urls.len();
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep_until(due.into()).await;
            let late = due.elapsed();
            let (timing, result) = client.stream(&urls[url], body, limit).await;
            (late, timing, result)
        }));
    }
    let mut load = Load { samples: Vec::new(), wall: Duration::ZERO, late: Duration::ZERO };
    for (request, task) in requests.iter().zip(tasks) {
        let (late, timing, result) = task.await.context("a request's task")?;
        load.late = load.late.max(late);
        load.samples.push(sample(request, &timing, result));
    }
    load.wall = start.elapsed();
    Ok(load)
}

fn sample(request: &Request, timing: &Timing, result: Result<()>) -> Sample {
    let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    let mut sample = Sample {
        at_s: (request.at.as_secs_f64() * 1e3).round() / 1e3,
        prompt_tokens: request.prompt_tokens,
        output_tokens: request.output_tokens,
        predicted_ttft_ms: timing.predicted_ttft_ms,
        prefill: timing.prefill.clone(),
        decode: timing.decode.clone(),
        ..Sample::default()
    };
    match (result, timing.first.zip(timing.last)) {
        (Ok(()), Some((first, last))) => {
            sample.ttft_ms = Some(ms(first));
            sample.gap_ms = timing.longest_gap.map(ms);
            if timing.tokens > 1 {
                sample.itl_ms = Some(ms((last - first) / (timing.tokens - 1)));
            }
        }
        (Ok(()), None) => sample.error = Some("a response without a token".to_owned()),
        (Err(error), _) => sample.error = Some(format!("{error:#}")),
    }
    sample
}
