//! [`Problem`]: what is wrong with one of the operator's objects, and where.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// One problem of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file that holds the object, or `cluster`.
    pub source: Arc<str>,
    /// The number of the YAML document in the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<u32>,
    /// `Kind namespace/name`, if it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Arc<str>>,
    /// The path of the field, for example `spec.rules[0].backendRefs[0]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<Arc<str>>,
    /// A CamelCase reason for metrics and conditions; the Gateway API's where it defines one.
    pub code: &'static str,
    /// What is wrong, what happens now, and what to do.
    pub reason: Arc<str>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(document) = self.document {
            write!(f, " document {document}")?;
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, ", {part}")?;
        }
        write!(f, ": {}", self.reason)
    }
}
