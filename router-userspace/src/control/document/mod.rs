//! Parses the text of a manifest file into typed objects, document by document.
//!
//! Scalars are parsed as `kubectl` parses them, with YAML 1.1 booleans (`yes`) and octals (`0777`).
//! A label value `yes` is refused here as by the API server, so that a file that is served from a
//! directory can be applied to a cluster unchanged.

use std::sync::Arc;

use gateway_api::backendtlspolicies::BackendTlsPolicy;
use router_core::fleet::{ObjectName, Problem};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fields::{self, FieldProblem};
use super::objects::{InferencePool, Key, Kind, Object, PoolSpec, Recognized, Resource};

/// Maximum number of documents in a file, with those that are null. The rest is ignored and reported.
pub const MAX_DOCUMENTS: usize = 10_000;

/// One document, or one item of a `List`.
#[derive(Debug)]
pub struct Document {
    /// Counted from 1 over the documents of the file that are not empty.
    pub position: u32,
    /// The object's kind and name, if they could be read.
    pub key: Option<Key>,
    pub content: Content,
    pub problems: Vec<Problem>,
}

#[derive(Debug)]
pub enum Content {
    Object(Box<Object>),
    /// A kind that pd-router does not read.
    Unhandled,
    /// Invalid. The problems contain the reason. An object that restricts has a stand-in.
    Broken(Option<Box<Object>>),
}

impl Content {
    /// The object, or what takes its place if no valid version of it was read before.
    pub fn into_object(self) -> Option<Object> {
        match self {
            Content::Object(object) => Some(*object),
            Content::Broken(stand_in) => stand_in.map(|object| *object),
            Content::Unhandled => None,
        }
    }
}

/// Parses every document of a file. An invalid document does not affect the others.
pub fn read(file: &Arc<str>, text: &str) -> Vec<Document> {
    let mut reader = DocumentReader { file, position: 0, parsed: 0, documents: Vec::new() };
    for (line, piece) in split(text).into_iter().filter(|(_, piece)| !is_empty(piece)) {
        if reader.documents.len().max(reader.parsed) >= MAX_DOCUMENTS {
            let reason =
                format!("the file has more than {MAX_DOCUMENTS} documents; the rest is ignored");
            reader.broken(None, "TooMany", reason);
            break;
        }
        reader.read_piece(line, piece);
    }
    reader.documents
}

/// Splits the text at `---` lines. Each piece comes with the number of lines before it. Text inside
/// a block scalar is indented, so such a line is always a separator.
fn split(text: &str) -> Vec<(usize, &str)> {
    let marker = |line: &str| {
        line.strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let mut pieces = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if offset > 0 && marker(line) {
            pieces.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    pieces.push((start_line, &text[start..]));
    pieces
}

/// Whether a piece has only its separator, comments and empty lines. It is not parsed.
fn is_empty(piece: &str) -> bool {
    let mut lines = piece.lines().map(|line| line.strip_prefix("---").unwrap_or(line).trim());
    lines.all(|line| line.is_empty() || line.starts_with('#'))
}

/// Adds the lines before a piece to the line numbers of a parser's message, so that they are those of
/// the file.
fn with_file_lines(message: &str, lines_before: usize) -> String {
    let mut parts = message.split("line ");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (number, rest) = part.split_at(digits);
        all.push_str("line ");
        match number.parse::<usize>() {
            Ok(line) => all.push_str(&line.saturating_add(lines_before).to_string()),
            Err(_) => all.push_str(number),
        }
        all.push_str(rest);
    }
    all
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        legacy_octal_numbers: true,
        strict_booleans: false,
        with_snippet: false,
    }
}

struct DocumentReader<'a> {
    file: &'a Arc<str>,
    position: u32,
    /// Number of pieces that were parsed.
    parsed: usize,
    documents: Vec<Document>,
}

impl DocumentReader<'_> {
    fn read_piece(&mut self, line: usize, piece: &str) {
        self.parsed += 1;
        // Each piece is parsed once and alone, so that the time is linear in the size of the file.
        match serde_saphyr::from_str_with_options::<Value>(piece, options()) {
            Ok(Value::Null) => {}
            Ok(value) => {
                self.position += 1;
                self.value(value, "", true);
            }
            Err(error) => {
                self.position += 1;
                let message = with_file_lines(&error.to_string(), line);
                let reason = fields::shortened(&format!("invalid YAML: {message}"));
                let key = guess_key(piece);
                let content =
                    Content::Broken(key.as_ref().and_then(|key| stand_in(key, &Value::Null)));
                self.invalid(key, content, None, "Unparsable", reason);
            }
        }
    }

    /// Reads one object. `at` is its path in a `List`.
    fn value(&mut self, value: Value, at: &str, may_be_list: bool) {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
            let reason = "apiVersion and kind are required: not a Kubernetes object".to_owned();
            return self.broken(Some(at), "NotAnObject", reason);
        };
        if may_be_list && kind.ends_with("List") && value.get("items").is_some_and(Value::is_array)
        {
            return self.list(value);
        }
        let recognized = Kind::recognize(&api_version, &kind);
        match recognized {
            Recognized::Unhandled => {
                self.push(None, Content::Unhandled, Vec::new());
            }
            Recognized::OtherVersion(served) => {
                let reason = format!("{api_version} is not a supported version of {kind}");
                let field = format!("{at}apiVersion");
                let key = key(served, &value);
                let content = Content::Broken(key.as_ref().and_then(|key| stand_in(key, &value)));
                self.invalid(key, content, Some(&field), "UnsupportedVersion", reason);
            }
            Recognized::Served(served) => self.object(served, value, at),
        }
    }

    fn list(&mut self, mut list: Value) {
        let items = list.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take);
        for (index, item) in items.unwrap_or_default().into_iter().enumerate() {
            if self.documents.len() >= MAX_DOCUMENTS {
                let reason = format!("more than {MAX_DOCUMENTS} objects; the rest is ignored");
                return self.broken(Some("items"), "TooMany", reason);
            }
            self.value(item, &format!("items[{index}]."), false);
        }
    }

    fn object(&mut self, kind: Kind, value: Value, at: &str) {
        let Some(key) = key(kind, &value) else {
            let reason = format!("metadata.name of a {} is required", kind.as_str());
            return self.broken(Some(&format!("{at}metadata.name")), "Unparsable", reason);
        };
        let (content, field_problems) = object(kind, value);
        let problem = |field_problem: FieldProblem| Problem {
            source: Arc::clone(self.file),
            document: Some(self.position),
            object: Some(key.to_string().into()),
            field: field_problem.field.map(|field| format!("{at}{field}").into()),
            code: field_problem.code,
            reason: field_problem.reason.into(),
        };
        let problems = field_problems.into_iter().map(problem).collect();
        self.push(Some(key), content, problems);
    }

    fn push(&mut self, key: Option<Key>, content: Content, problems: Vec<Problem>) {
        self.documents.push(Document { position: self.position, key, content, problems });
    }

    /// Adds what is no object that is known by name.
    fn broken(&mut self, field: Option<&str>, code: &'static str, reason: String) {
        self.invalid(None, Content::Broken(None), field, code, reason);
    }

    fn invalid(
        &mut self,
        key: Option<Key>,
        content: Content,
        field: Option<&str>,
        code: &'static str,
        reason: String,
    ) {
        let problem = Problem {
            source: Arc::clone(self.file),
            document: (self.position > 0).then_some(self.position),
            object: key.as_ref().map(|key| key.to_string().into()),
            field: field
                .map(|field| field.trim_end_matches('.'))
                .filter(|f| !f.is_empty())
                .map(Into::into),
            code,
            reason: reason.into(),
        };
        self.push(key, content, vec![problem]);
    }
}

/// Parses one object of `kind`. The problems list the fields without effect, or say why it is
/// invalid.
pub(super) fn object(kind: Kind, value: Value) -> (Content, Vec<FieldProblem>) {
    let original = value.clone();
    match typed(kind, value) {
        Ok((object, kept)) => {
            (Content::Object(Box::new(object)), fields::without_effect(kind, &original, &kept))
        }
        // The parser's error may quote the content of the Secret, so it is dropped.
        Err(_) if kind == Kind::Secret => {
            let reason = "is not a valid Secret".to_owned();
            let problem = FieldProblem { field: None, code: "Unparsable", reason };
            (Content::Broken(None), vec![problem])
        }
        Err((field, reason)) => {
            let stand_in = key(kind, &original).and_then(|key| stand_in(&key, &original));
            let problem = FieldProblem { field, code: "Unparsable", reason };
            (Content::Broken(stand_in), vec![problem])
        }
    }
}

/// What takes the place of an invalid object that restricts, so that nothing is served against its
/// intention: a BackendTLSPolicy without validation, with the targets that could be read.
fn stand_in(key: &Key, value: &Value) -> Option<Box<Object>> {
    if key.kind != Kind::BackendTlsPolicy {
        return None;
    }
    let read = |pointer: &str| value.pointer(pointer).cloned().unwrap_or_default();
    let mut policy = BackendTlsPolicy {
        metadata: serde_json::from_value(read("/metadata")).unwrap_or_default(),
        ..BackendTlsPolicy::default()
    };
    policy.metadata.namespace = Some(key.name.namespace.to_string());
    policy.metadata.name = Some(key.name.name.to_string());
    policy.spec.target_refs = serde_json::from_value(read("/spec/targetRefs")).unwrap_or_default();
    Some(Box::new(Object::UnreadBackendTlsPolicy(policy)))
}

/// Returns the key of a document that has a name.
pub(super) fn key(kind: Kind, value: &Value) -> Option<Key> {
    let metadata = |name: &str| value.pointer(&format!("/metadata/{name}")).and_then(Value::as_str);
    let name = metadata("name").filter(|name| !name.is_empty())?;
    let namespace =
        if kind.namespaced() { metadata("namespace").unwrap_or("default") } else { "default" };
    Some(Key { kind, name: ObjectName { namespace: namespace.into(), name: name.into() } })
}

/// Guesses the key of text that is not valid YAML from the usual lines of manifests.
fn guess_key(text: &str) -> Option<Key> {
    fn field<'t>(line: &'t str, name: &str) -> Option<&'t str> {
        let value = line.strip_prefix(name)?.strip_prefix(':')?.split(" #").next()?.trim();
        Some(value.trim_matches(['"', '\'']))
    }
    let top = |name: &str| text.lines().find_map(|line| field(line, name));
    let Recognized::Served(kind) = Kind::recognize(top("apiVersion")?, top("kind")?) else {
        return None;
    };
    let block = text.lines().skip_while(|line| field(line, "metadata").is_none()).skip(1);
    let block = || block.clone().take_while(|line| line.starts_with(' ') || line.is_empty());
    let indent = |line: &str| line.len() - line.trim_start().len();
    let depth = block().find(|line| !line.trim().is_empty()).map(indent)?;
    let inner = |name: &str| {
        block().filter(|line| indent(line) == depth).find_map(|line| field(line.trim_start(), name))
    };
    let namespace = inner("namespace").filter(|_| kind.namespaced()).unwrap_or("default");
    Some(Key {
        kind,
        name: ObjectName { namespace: namespace.into(), name: inner("name")?.into() },
    })
}

/// The object and the fields of the document that its type keeps, or the invalid field and a reason.
type TypedResult = Result<(Object, Value), (Option<String>, String)>;

fn typed(kind: Kind, value: Value) -> TypedResult {
    fn parse<T: DeserializeOwned + serde::Serialize>(
        value: Value,
        wrap: impl FnOnce(T) -> Object,
    ) -> TypedResult {
        let parsed: T = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            ((path != ".").then_some(path), fields::explain(&error.into_inner().to_string()))
        })?;
        let kept = serde_json::to_value(&parsed).map_err(|error| (None, error.to_string()))?;
        Ok((wrap(parsed), kept))
    }
    match kind {
        Kind::Namespace => parse(value, Object::Namespace),
        Kind::GatewayClass => parse(value, Object::GatewayClass),
        Kind::Gateway => parse(value, Object::Gateway),
        Kind::HttpRoute => parse(value, Object::HttpRoute),
        Kind::ReferenceGrant => parse(value, Object::ReferenceGrant),
        Kind::InferencePoolV1Alpha2 => parse(value, |pool: Resource<_>| {
            let spec = PoolSpec::V1Alpha2(pool.spec);
            Object::InferencePool(InferencePool { metadata: pool.metadata, spec })
        }),
        Kind::InferencePoolV1 => parse(value, |pool: Resource<_>| {
            let spec = PoolSpec::V1(pool.spec);
            Object::InferencePool(InferencePool { metadata: pool.metadata, spec })
        }),
        Kind::InferenceTrafficPolicy => parse(value, Object::InferenceTrafficPolicy),
        Kind::BackendTrafficPolicy => parse(value, Object::BackendTrafficPolicy),
        Kind::BackendTlsPolicy => parse(value, Object::BackendTlsPolicy),
        Kind::ConfigMap => parse(value, Object::ConfigMap),
        Kind::Service => parse(value, Object::Service),
        Kind::EndpointSlice => parse(value, Object::EndpointSlice),
        Kind::Secret => parse(value, Object::Secret),
        Kind::Pod => parse(value, |pod| Object::Pod(Box::new(pod))),
    }
}

#[cfg(test)]
mod tests;
