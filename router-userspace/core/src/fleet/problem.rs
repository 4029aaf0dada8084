//! [`Problem`]: what of the operator's objects is not as it should be, and where.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// One complaint about one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, or `cluster`.
    pub source: Arc<str>,
    /// The position in the file, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<u32>,
    /// `Kind namespace/name`, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Arc<str>>,
    /// The path of the field, for example `spec.rules[0].backendRefs[0]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<Arc<str>>,
    /// A word for metrics and conditions, in the Gateway API's spelling where it has one.
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
