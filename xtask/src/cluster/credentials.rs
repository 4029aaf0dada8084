//! Certificates, tokens and kubeconfigs of a cluster; no two clusters share any.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::plan::{Addresses, node_name};
use crate::shell;

/// OpenSSL's own configuration would add extensions.
const OPENSSL: &str = "[req]\ndistinguished_name = name\n[name]\n";
/// The user of `cargo xtask cluster kubectl`.
pub(super) const ADMIN: &str = "admin";

/// The folder with all of it.
#[derive(Debug)]
pub(super) struct Credentials(pub(super) PathBuf);

impl Credentials {
    /// The file of that name, for a command line.
    pub(super) fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// The kubeconfig of a user.
    pub(super) fn kubeconfig(&self, user: &str) -> String {
        self.file(&format!("{user}.kubeconfig"))
    }

    /// Makes everything for a cluster with so many nodes.
    ///
    /// # Errors
    /// OpenSSL fails, or a file cannot be written.
    pub(super) fn make(folder: PathBuf, addresses: Addresses, nodes: u8) -> Result<Credentials> {
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        let made = Credentials(folder);
        made.certificates(addresses)?;
        made.tokens(addresses, nodes)?;
        Ok(made)
    }

    fn certificates(&self, addresses: Addresses) -> Result<()> {
        fs::write(self.file("openssl.cnf"), OPENSSL)?;
        self.certificate("ca", "/CN=cluster", &["basicConstraints=critical,CA:TRUE"], false)?;
        let names = format!(
            "subjectAltName=IP:{},IP:{},IP:127.0.0.1,DNS:kubernetes,DNS:kubernetes.default,\
             DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local",
            addresses.control_plane(),
            addresses.api_service()
        );
        self.certificate("apiserver", "/CN=kube-apiserver", &[&names], true)?;
        let client = ["extendedKeyUsage=clientAuth"];
        let subject = "/O=system:masters/CN=kube-apiserver-kubelet-client";
        self.certificate("kubelet-client", subject, &client, true)?;
        let [key, public] = ["key", "pub"].map(|end| self.file(&format!("service-accounts.{end}")));
        let mut make = shell::command("openssl");
        make.args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"]);
        shell::output(make.arg(&key))?;
        let mut derive = shell::command("openssl");
        shell::output(derive.args(["pkey", "-pubout", "-in", &key, "-out", &public])).map(|_| ())
    }

    /// Makes a key and a certificate, by itself or by the authority `ca`.
    fn certificate(&self, name: &str, subject: &str, more: &[&str], by_ca: bool) -> Result<()> {
        let mut make = shell::command("openssl");
        make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        make.args(["-noenc", "-days", "3650", "-subj", subject]);
        make.args(["-config", &self.file("openssl.cnf")]);
        make.args(["-keyout", &self.file(&format!("{name}.key"))]);
        make.args(["-out", &self.file(&format!("{name}.crt"))]);
        for extension in more {
            make.args(["-addext", extension]);
        }
        if by_ca {
            make.args(["-CA", &self.file("ca.crt"), "-CAkey", &self.file("ca.key")]);
        }
        shell::output(&mut make).map(|_| ())
    }

    /// The API server's list of tokens, and a kubeconfig for each.
    fn tokens(&self, addresses: Addresses, nodes: u8) -> Result<()> {
        let mut users = vec![
            (ADMIN.to_owned(), "admin".to_owned(), "system:masters"),
            of_system("kube-controller-manager"),
            of_system("kube-scheduler"),
            of_system("kube-proxy"),
        ];
        for node in 1..=nodes {
            let name = node_name(node);
            users.push((name.clone(), format!("system:node:{name}"), "system:nodes"));
        }
        let mut list = String::new();
        for (file, user, group) in users {
            let token = random()?;
            writeln!(list, "{token},{user},{user},{group}").context("writing to a string")?;
            let text = kubeconfig(&self.file("ca.crt"), addresses, &user, &token);
            private(Path::new(&self.kubeconfig(&file)), &text)?;
        }
        private(Path::new(&self.file("tokens.csv")), &list)
    }
}

/// A user of the control plane; its group is one that no role names.
fn of_system(name: &str) -> (String, String, &'static str) {
    (name.to_owned(), format!("system:{name}"), "pd-router:control-plane")
}

fn private(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(())
}

fn random() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes).context("reading random bytes")?;
    Ok(bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

fn kubeconfig(ca: &str, addresses: Addresses, user: &str, token: &str) -> String {
    let server = format!("https://{}:6443", addresses.control_plane());
    format!(
        "apiVersion: v1
kind: Config
current-context: cluster
clusters:
- name: cluster
  cluster: {{server: \"{server}\", certificate-authority: \"{ca}\"}}
users:
- name: \"{user}\"
  user: {{token: \"{token}\"}}
contexts:
- name: cluster
  context: {{cluster: cluster, user: \"{user}\"}}
"
    )
}
