//! Images of containers as archives: an OCI layout that `docker load` and containerd read, with one
//! layer, made from files without a container engine. The same files make the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image with one layer.
#[derive(Debug)]
pub(crate) struct Image {
    /// Names in full, with registry and tag: `docker.io/library/pd-router:0.2.0`.
    pub(crate) names: Vec<String>,
    pub(crate) entrypoint: String,
    /// Who runs it, as `UID:GID`.
    pub(crate) user: &'static str,
    /// When it was made, as RFC 3339 has it.
    pub(crate) created: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// What its root holds; folders come before what is in them.
    pub(crate) entries: Vec<Entry>,
}

/// A file or folder of an image. Paths have no `/` in front.
#[derive(Debug)]
pub(crate) enum Entry {
    Folder { path: String, mode: u32 },
    File { path: String, mode: u32, content: Vec<u8> },
}

impl Image {
    /// Writes the archive and returns the digest of the image's manifest, `sha256:...`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, to: &Path) -> Result<String> {
        let layer = layer(&self.entries)?;
        let layer_digest = sha256(&layer);
        let config = serde_json::to_vec(&self.config(&layer_digest))?;
        let config_digest = sha256(&config);
        let blob = |kind: &str, content: &[u8], digest: &str| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": format!("sha256:{digest}"),
                "size": content.len(),
            })
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob("config.v1+json", &config, &config_digest),
            "layers": [blob("layer.v1.tar", &layer, &layer_digest)],
        }))?;
        let digest = sha256(&manifest);
        let named = |name: &String| {
            let mut entry = blob("manifest.v1+json", &manifest, &digest);
            entry["annotations"] = json!({
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name,
            });
            entry
        };
        let index = json!({
            "schemaVersion": 2,
            "manifests": self.names.iter().map(named).collect::<Vec<Value>>(),
        });
        let blob_path = |digest: &str| format!("blobs/sha256/{digest}");
        // What Docker reads.
        let docker = json!([{
            "Config": blob_path(&config_digest),
            "RepoTags": self.names,
            "Layers": [blob_path(&layer_digest)],
        }]);
        let files = [
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), serde_json::to_vec(&index)?),
            ("manifest.json".to_owned(), serde_json::to_vec(&docker)?),
            (blob_path(&digest), manifest),
            (blob_path(&config_digest), config),
            (blob_path(&layer_digest), layer),
        ];
        let entries: Vec<Entry> = files
            .into_iter()
            .map(|(path, content)| Entry::File { path, mode: 0o644, content })
            .collect();
        fs::write(to, tar(&entries)?).with_context(|| format!("writing {}", to.display()))?;
        Ok(format!("sha256:{digest}"))
    }

    fn config(&self, layer_digest: &str) -> Value {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        json!({
            "created": self.created,
            "architecture": architecture,
            "os": "linux",
            "config": {
                "User": self.user,
                "Entrypoint": [self.entrypoint],
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
                "Labels": self.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
            "history": [{"created": self.created, "created_by": "cargo xtask images"}],
        })
    }
}

fn layer(entries: &[Entry]) -> Result<Vec<u8>> {
    tar(entries).context("making a layer")
}

/// An archive of files of user 0 at time 0.
fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        let (path, mode, content): (_, _, &[u8]) = match entry {
            Entry::Folder { path, mode } => {
                header.set_entry_type(tar::EntryType::Directory);
                (path, mode, &[])
            }
            Entry::File { path, mode, content } => (path, mode, content),
        };
        header.set_mode(*mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len().try_into()?);
        archive.append_data(&mut header, path, content).with_context(|| path.clone())?;
    }
    let mut bytes = archive.into_inner()?;
    bytes.flush()?;
    Ok(bytes)
}

/// The digest in hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(content: &[u8]) -> Image {
        Image {
            names: vec!["localhost/a:1".to_owned(), "localhost/b:1".to_owned()],
            entrypoint: "/bin/a".to_owned(),
            user: "65532:65532",
            created: "1970-01-01T00:00:00Z".to_owned(),
            labels: BTreeMap::from([("org.opencontainers.image.version".into(), "1".into())]),
            entries: vec![
                Entry::Folder { path: "bin/".to_owned(), mode: 0o755 },
                Entry::File { path: "bin/a".to_owned(), mode: 0o755, content: content.to_vec() },
            ],
        }
    }

    /// Files of an archive by their path.
    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            files.insert(path, content);
        }
        files
    }

    fn written(image: &Image) -> (String, Vec<u8>) {
        let name =
            format!("pd-router-image-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        let digest = image.write(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        (digest, bytes)
    }

    #[test]
    fn the_same_files_make_the_same_archive_and_others_another_digest() {
        let (digest, bytes) = written(&image(b"program"));
        assert_eq!(written(&image(b"program")), (digest.clone(), bytes));
        assert_ne!(written(&image(b"another")).0, digest);
    }

    #[test]
    fn every_digest_of_an_archive_is_that_of_its_blob() {
        let (digest, bytes) = written(&image(b"program"));
        let files = files(&bytes);
        for (path, content) in &files {
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(sha256(content), digest);
            }
        }
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][1]["digest"], digest);
        assert_eq!(
            index["manifests"][1]["annotations"]["io.containerd.image.name"],
            "localhost/b:1"
        );
        let blob = |value: &Value| {
            let digest = value["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
            files[&digest].clone()
        };
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let layer = self::files(&blob(&manifest["layers"][0]));
        assert_eq!(layer["bin/a"], b"program");
    }
}
