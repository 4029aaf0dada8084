//! Self-signed certificates, and curl that trusts one of them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::folder::Folder;

/// A certificate for some host names, with its key, as PEM.
#[derive(Debug)]
pub struct Certificate {
    folder: Folder,
    pub certificate: String,
    pub key: String,
}

/// What curl saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `None` where there was no answer; `error` has the reason.
    pub status: Option<u16>,
    /// `1.1` or `2`.
    pub version: String,
    pub body: String,
    pub error: String,
}

impl Certificate {
    /// Makes a certificate for `host`.
    ///
    /// # Panics
    /// openssl is missing.
    #[must_use]
    pub fn new(host: &str) -> Certificate {
        let folder = Folder::new("certificate");
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "30", "-newkey", "ec"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-subj", &format!("/CN={host}"), "-addext"])
            .arg(format!("subjectAltName=DNS:{host}"))
            .arg("-keyout")
            .arg(folder.path().join("tls.key"))
            .arg("-out")
            .arg(folder.path().join("tls.crt"))
            .output()
            .expect("openssl runs");
        assert!(made.status.success(), "openssl makes no certificate: {made:?}");
        let read = |name: &str| {
            std::fs::read_to_string(folder.path().join(name)).expect("what openssl wrote")
        };
        let (certificate, key) = (read("tls.crt"), read("tls.key"));
        Certificate { folder, certificate, key }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tls.crt")
    }

    /// The Secret with this certificate and its key.
    #[must_use]
    pub fn secret(&self, namespace: &str, name: &str) -> String {
        secret(namespace, name, &self.certificate, &self.key)
    }

    /// Asks `https://HOST:PORT/PATH` at `address`, trusting this certificate alone.
    ///
    /// # Panics
    /// curl is missing.
    pub async fn curl(
        &self,
        address: std::net::SocketAddr,
        host: &str,
        path: &str,
        words: &[&str],
    ) -> Seen {
        let output = tokio::process::Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
            .arg(self.path())
            .args(["--connect-to", &format!("::{}:{}", address.ip(), address.port())])
            .args(["--write-out", "\n%{http_version} %{http_code}"])
            .args(["--header", "Content-Type: application/json"])
            .args(words)
            .arg(format!("https://{host}:{}{path}", address.port()))
            .stdin(Stdio::null())
            .output()
            .await
            .expect("curl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, trailer) = text.rsplit_once('\n').unwrap_or_default();
        let (version, status) = trailer.split_once(' ').unwrap_or_default();
        Seen {
            status: status.parse().ok().filter(|status| *status != 0),
            version: version.to_owned(),
            body: body.to_owned(),
            error: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A Secret with this certificate and key, which need not be valid.
#[must_use]
pub fn secret(namespace: &str, name: &str, certificate: &str, key: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {"tls.crt": certificate, "tls.key": key},
    })
    .to_string()
}
