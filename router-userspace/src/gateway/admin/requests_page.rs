//! The pages `/requests` and `/requests/ID`: the last requests and where their time went.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;

use super::fleet_page::unix_ms;
use crate::gateway::placement::explain::ChoiceExplanation;
use crate::gateway::shared::Gateway;
use crate::gateway::timeline::summary::RequestSummary;

/// Requests that are listed without `limit`.
const DEFAULT_LIMIT: usize = 100;
/// Maximum of `limit`: the page is made while other requests wait.
const MAX_LIMIT: usize = 1000;

/// What a query of `/requests` asks for.
#[derive(Debug, PartialEq)]
struct RequestFilter {
    /// Only those whose client waited at least this long for the first token, or for the answer without one.
    slow_ms: Option<f64>,
    failed: bool,
    pool: Option<String>,
    limit: usize,
}

impl RequestFilter {
    /// # Errors
    /// Names the parameter that is unknown or out of range.
    fn parse(query: &str) -> Result<RequestFilter, String> {
        let mut filter =
            RequestFilter { slow_ms: None, failed: false, pool: None, limit: DEFAULT_LIMIT };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let wrong = |must: &str| Err(format!("the parameter `{name}` is `{value}`: {must}"));
            match &*name {
                "slow" => match value.parse::<f64>() {
                    Ok(ms) if ms.is_finite() && ms >= 0.0 => filter.slow_ms = Some(ms),
                    _ => return wrong("it must be a number of milliseconds"),
                },
                "failed" => match &*value {
                    "1" => filter.failed = true,
                    "0" => filter.failed = false,
                    _ => return wrong("it must be 0 or 1"),
                },
                "limit" => match value.parse() {
                    Ok(limit @ 1..=MAX_LIMIT) => filter.limit = limit,
                    _ => return wrong("it must be a number of requests from 1 to 1000"),
                },
                "pool" => match value.split_once('/') {
                    Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                        filter.pool = Some(value.into_owned());
                    }
                    _ => return wrong("it must be NAMESPACE/NAME"),
                },
                _ => {
                    let known = "slow, failed, limit and pool";
                    return Err(format!("the parameter `{name}` is unknown: there are {known}"));
                }
            }
        }
        Ok(filter)
    }

    fn admits(&self, request: &RequestSummary) -> bool {
        let in_pool = |pool: &String| request.pool.to_string() == *pool;
        self.slow_ms.is_none_or(|ms| request.waited_ms() >= ms)
            && (!self.failed || request.is_failed())
            && self.pool.as_ref().is_none_or(in_pool)
    }
}

/// The page `/requests`.
#[derive(Serialize)]
struct RequestsPage<'r> {
    /// Number of requests in memory.
    kept: usize,
    /// When the page was made, in milliseconds since 1970.
    now_ms: u64,
    /// Every request that has ended since is in memory; all since the start if it is null.
    complete_since_ms: Option<f64>,
    requests: Vec<&'r RequestSummary>,
}

/// A request, and why its pair was chosen.
#[derive(Serialize)]
pub(super) struct RequestDetail<'r> {
    #[serde(flatten)]
    request: &'r RequestSummary,
    /// The pair of the last attempt beside the next best one; null unless the policy predicts.
    choice: Option<&'r ChoiceExplanation>,
}

impl RequestDetail<'_> {
    pub(super) fn of(request: &RequestSummary) -> RequestDetail<'_> {
        RequestDetail { request, choice: request.explanation.as_deref() }
    }
}

pub(super) fn json(page: &impl Serialize) -> Result<String, (StatusCode, String)> {
    serde_json::to_string(page)
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

impl Gateway {
    /// The kept requests that a query asks for, the last first, as JSON.
    ///
    /// # Errors
    /// The status and the text of the answer.
    pub(super) fn describe_requests(&self, query: &str) -> Result<String, (StatusCode, String)> {
        let filter = RequestFilter::parse(query).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
        let kept = self.kept_requests()?;
        let admitted = kept.iter().filter(|request| filter.admits(request));
        let requests = admitted.take(filter.limit).map(|request| &**request).collect();
        // Read after the requests: one that is pushed out meanwhile only makes it later.
        let complete_since_ms = self.recent.complete_since_ms();
        json(&RequestsPage { kept: kept.len(), now_ms: unix_ms(), complete_since_ms, requests })
    }

    /// The last kept request with this id and the choice of its pair, as JSON.
    ///
    /// # Errors
    /// The status and the text of the answer.
    pub(super) fn describe_request(&self, id: &str) -> Result<String, (StatusCode, String)> {
        json(&RequestDetail::of(with_id(&self.kept_requests()?, id)?))
    }

    /// Every kept request, the last first.
    ///
    /// # Errors
    /// None is kept: the status and the text of the answer.
    pub(super) fn kept_requests(&self) -> Result<Vec<Arc<RequestSummary>>, (StatusCode, String)> {
        match self.recent.is_off() {
            true => Err((StatusCode::NOT_FOUND, "no request is kept: --requests-kept is 0".into())),
            false => Ok(self.recent.latest_first()),
        }
    }
}

/// The last request with this percent-encoded id.
///
/// # Errors
/// The status and the text of the answer.
pub(super) fn with_id<'r>(
    kept: &'r [Arc<RequestSummary>],
    id: &str,
) -> Result<&'r RequestSummary, (StatusCode, String)> {
    let id = percent_encoding::percent_decode_str(id).decode_utf8_lossy();
    let found = kept.iter().find(|request| *request.id == *id);
    let missing = || (StatusCode::NOT_FOUND, format!("no ended request has the id {id}"));
    found.map(|request| &**request).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read() {
        let filter = RequestFilter::parse("slow=1.5&failed=1&limit=7&pool=a%2Fb").unwrap();
        let want =
            RequestFilter { slow_ms: Some(1.5), failed: true, pool: Some("a/b".into()), limit: 7 };
        assert_eq!(filter, want);
        assert_eq!(RequestFilter::parse("").unwrap().limit, DEFAULT_LIMIT);
    }

    #[test]
    fn an_error_names_the_parameter() {
        for (query, name) in [
            ("slow=fast", "slow"),
            ("slow=-1", "slow"),
            ("slow=inf", "slow"),
            ("failed=yes", "failed"),
            ("limit=0", "limit"),
            ("limit=", "limit"),
            ("limit=1001", "limit"),
            ("pool=name", "pool"),
            ("page=2", "page"),
        ] {
            let error = RequestFilter::parse(query).unwrap_err();
            assert!(error.starts_with(&format!("the parameter `{name}` is ")), "{error}");
        }
    }
}
