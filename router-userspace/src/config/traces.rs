//! [`TraceFlags`]: which requests are exported as OpenTelemetry traces, and where to.

use std::str::FromStr;

use clap::Args;
use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

/// Where spans are posted to: `http://HOST:PORT`, with `/v1/traces` unless a path is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEndpoint {
    pub authority: Authority,
    pub path: PathAndQuery,
}

/// The export of traces.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Traces")]
pub struct TraceFlags {
    /// OpenTelemetry collector to which the spans of requests to pools are sent, with OTLP over HTTP, for
    /// example `http://otel-collector:4318`. Without this flag no spans are made.
    #[arg(long, value_name = "URL")]
    pub otlp_traces_endpoint: Option<TraceEndpoint>,
    /// Share of the requests that are exported, from 0 to 1. Failed requests, and those whose `traceparent` is
    /// sampled, are exported always. Requires --otlp-traces-endpoint.
    #[arg(
        long,
        default_value_t = 0.01,
        value_name = "SHARE",
        value_parser = share,
        requires = "otlp_traces_endpoint"
    )]
    pub trace_ratio: f64,
}

impl FromStr for TraceEndpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<TraceEndpoint, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
        let parts = uri.into_parts();
        let authority = match (parts.scheme, parts.authority) {
            (Some(scheme), Some(authority)) if scheme == Scheme::HTTP => authority,
            _ => return Err("it must be http://HOST:PORT".to_owned()),
        };
        let given = parts.path_and_query.filter(|path| path != "/");
        let path = given.unwrap_or(PathAndQuery::from_static("/v1/traces"));
        Ok(TraceEndpoint { authority, path })
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "it must be a number from 0 to 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_the_usual_path_unless_another_is_given() {
        let usual: TraceEndpoint = "http://collector:4318".parse().unwrap();
        assert_eq!(
            (usual.authority.as_str(), usual.path.as_str()),
            ("collector:4318", "/v1/traces")
        );
        let other: TraceEndpoint = "http://[::1]:1/otlp?a=b".parse().unwrap();
        assert_eq!((other.authority.as_str(), other.path.as_str()), ("[::1]:1", "/otlp?a=b"));
        for wrong in ["collector:4318", "https://collector:4318", "/v1/traces", "http://", ""] {
            assert!(wrong.parse::<TraceEndpoint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_is_from_0_to_1() {
        assert_eq!((share("0"), share("0.5"), share("1")), (Ok(0.0), Ok(0.5), Ok(1.0)));
        for wrong in ["-0.1", "1.1", "nan", "all", ""] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
