//! [`ConnectionInfo`]: how a client's connection came in.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;
use router_core::fleet::Fleet;
use router_core::route::{self, Head};

use super::reject::Reject;
use super::upgrade::TunnelSlot;
use crate::http_client::unread_body::UnreadBody;

/// How a connection came in.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    port: u16,
    secure: bool,
    /// The server name of the client's TLS handshake.
    server_name: Option<Arc<str>>,
    /// The address of the client.
    client: HeaderValue,
    trusted_proxy: bool,
    unread: Arc<UnreadBody>,
    tunnel: TunnelSlot,
}

impl ConnectionInfo {
    pub(crate) fn plain(port: u16, client: IpAddr, trusted_proxy: bool) -> ConnectionInfo {
        let client = HeaderValue::try_from(client.to_canonical().to_string())
            .expect("an address is a header value");
        ConnectionInfo {
            port,
            secure: false,
            server_name: None,
            client,
            trusted_proxy,
            unread: Arc::default(),
            tunnel: TunnelSlot::default(),
        }
    }

    /// Adds the TLS handshake of a connection.
    pub(crate) fn secured(self, server_name: Option<&str>) -> ConnectionInfo {
        ConnectionInfo { secure: true, server_name: server_name.map(Into::into), ..self }
    }

    /// The rest of the last request's body.
    pub(crate) fn unread(&self) -> &Arc<UnreadBody> {
        &self.unread
    }

    /// The tunnel that the connection becomes when a backend agrees to an upgrade.
    pub(crate) fn tunnel(&self) -> &TunnelSlot {
        &self.tunnel
    }

    /// The port of this process.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    pub(crate) fn client(&self) -> &HeaderValue {
        &self.client
    }

    pub(crate) fn is_trusted_proxy(&self) -> bool {
        self.trusted_proxy
    }

    /// Refuses a request for one listener on a connection that was made for another (GEP-3567): the
    /// client has checked only the latter's certificate.
    pub(crate) fn check(&self, fleet: &Fleet, head: &Head<'_>) -> Result<(), Reject> {
        if !self.secure {
            return Ok(());
        }
        let connected = route::listener(fleet, self.port, self.server_name.as_deref());
        let requested = route::listener(fleet, self.port, head.host);
        match (connected, requested) {
            (Some(connected), Some(requested)) if std::ptr::eq(connected, requested) => Ok(()),
            _ => Err(Reject::Misdirected),
        }
    }
}
