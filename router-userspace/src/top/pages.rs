//! [`AdminPages`]: the pages of the admin port of every gateway behind the given names.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use futures_util::future::join_all;
use http::header::AUTHORIZATION;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::TopFlags;
use super::report::TopReport;
use crate::http_client::HttpClient;

/// Time for a gateway to answer one page.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
/// Maximum size of a page, in bytes: a fleet of a thousand workers has some megabytes.
const MAX_PAGE: usize = 256 << 20;
/// Maximum number of gateways that are asked.
const MAX_GATEWAYS: usize = 64;
const FLEET: PathAndQuery = PathAndQuery::from_static("/fleet");
/// The requests of which the parts are shown.
const REQUESTS: PathAndQuery = PathAndQuery::from_static("/requests?limit=1000");
const FAILURES: PathAndQuery = PathAndQuery::from_static("/requests?failed=1&limit=20");

/// What one gateway answered.
pub(super) struct GatewayPages {
    pub(super) address: String,
    /// `/fleet`, or why there is none.
    pub(super) fleet: Result<Value, String>,
    /// The last requests; `None` if it keeps none.
    pub(super) requests: Option<Value>,
    /// The last failed ones.
    pub(super) failures: Option<Value>,
}

/// Reads pages of admin ports.
pub(super) struct AdminPages {
    http: HttpClient,
    gateways: Vec<Authority>,
    headers: HeaderMap,
}

impl AdminPages {
    /// # Errors
    /// The token file cannot be read or holds no token.
    pub(super) fn new(flags: &TopFlags) -> Result<AdminPages> {
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
        Ok(AdminPages { http, gateways: flags.gateway.clone(), headers })
    }

    /// What every gateway shows, together. Names are resolved each time, since replicas come and go.
    ///
    /// # Errors
    /// No gateway answers: why the first one does not.
    pub(super) async fn report(&self) -> Result<TopReport> {
        let found = join_all(self.gateways.iter().map(resolve)).await;
        let mut unresolved = Vec::new();
        let mut addresses: Vec<Authority> = Vec::new();
        for (name, found) in self.gateways.iter().zip(found) {
            match found {
                Ok(found) => addresses.extend(found),
                Err(error) => unresolved.push(GatewayPages {
                    address: name.to_string(),
                    fleet: Err(format!("{error:#}")),
                    requests: None,
                    failures: None,
                }),
            }
        }
        addresses.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        addresses.dedup();
        if addresses.len() > MAX_GATEWAYS {
            bail!("--gateway: {} addresses, at most {MAX_GATEWAYS} are allowed", addresses.len());
        }
        let mut pages = join_all(addresses.iter().map(|address| self.pages_of(address))).await;
        pages.extend(unresolved);
        if let Some(Err(why)) = pages.first().map(|first| &first.fleet)
            && pages.iter().all(|page| page.fleet.is_err())
        {
            bail!("{why}");
        }
        Ok(TopReport::of(&pages))
    }

    /// `/requests/ID` of the gateway at an address.
    ///
    /// # Errors
    /// It does not answer, or keeps no such request.
    pub(super) async fn request(&self, address: &str, id: &str) -> Result<Value> {
        let gateway: Authority = address.parse().context("an address")?;
        let id = utf8_percent_encode(id, NON_ALPHANUMERIC);
        let path = PathAndQuery::try_from(format!("/requests/{id}")).context("an id")?;
        self.page(&gateway, path).await?.context("the request is no longer kept")
    }

    async fn pages_of(&self, gateway: &Authority) -> GatewayPages {
        let page = async |path| self.page(gateway, path).await;
        let fleet = match page(FLEET).await {
            Ok(Some(fleet)) => Ok(fleet),
            Ok(None) => Err(format!("--gateway {gateway}: /fleet: there is no such page")),
            Err(error) => Err(format!("{error:#}")),
        };
        let (mut requests, mut failures) = (None, None);
        if fleet.is_ok() {
            // A gateway that ends between two pages is shown without its requests.
            (requests, failures) =
                (page(REQUESTS).await.unwrap_or(None), page(FAILURES).await.unwrap_or(None));
        }
        GatewayPages { address: gateway.to_string(), fleet, requests, failures }
    }

    /// A page as JSON; `None` if the gateway has none.
    async fn page(&self, gateway: &Authority, path: PathAndQuery) -> Result<Option<Value>> {
        let place = format!("--gateway {gateway}: {}", path.path());
        let page = self.http.get(gateway, &path, &self.headers, MAX_PAGE);
        let page = tokio::time::timeout(ANSWER_TIMEOUT, page).await;
        let timed_out = || format!("{place}: no answer within {ANSWER_TIMEOUT:?}");
        let page = page.with_context(timed_out)?.with_context(|| place.clone())?;
        let text = String::from_utf8_lossy(page.body());
        match page.status() {
            StatusCode::OK => Ok(Some(serde_json::from_slice(page.body()).context(place)?)),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => {
                bail!("{place}: {}; --token-file names the file of a token", text.trim())
            }
            other => bail!("{place}: {other}: {}", text.trim()),
        }
    }
}

/// Every address of a host: a headless Service has one for each of its pods.
async fn resolve(gateway: &Authority) -> Result<Vec<Authority>> {
    let place = || format!("--gateway {gateway}");
    let Some(port) = gateway.port_u16() else { bail!("{}: a port is missing", place()) };
    let host = gateway.host().trim_start_matches('[').trim_end_matches(']');
    let found = tokio::net::lookup_host((host, port)).await.with_context(place)?;
    let named = |address: SocketAddr| Authority::try_from(address.to_string()).with_context(place);
    let found = found.map(named).collect::<Result<Vec<Authority>>>()?;
    if found.is_empty() {
        bail!("{}: the name has no address", place());
    }
    Ok(found)
}
