//! [`Table`]: the matches of one host name by path, in the Gateway API's precedence.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::matches::{Match, PathMatch};
use super::{Head, Rule};
use crate::fleet::ObjectName;

/// One match and the rule that it leads to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    #[serde(flatten)]
    pub(super) matching: Match,
    #[serde(flatten)]
    pub(super) rule: Arc<Rule>,
}

/// Entries of one path, the preferred first.
type Row = (Box<str>, Vec<Entry>);

/// Looked up by path: exact ones first, then the longest prefix. Both lists are sorted.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    exact: Vec<Row>,
    prefix: Vec<Row>,
    longest_prefix: usize,
}

impl Table {
    pub(super) fn new(entries: Vec<Entry>) -> Table {
        let mut exact: BTreeMap<Box<str>, Vec<Entry>> = BTreeMap::new();
        let mut prefix: BTreeMap<Box<str>, Vec<Entry>> = BTreeMap::new();
        for entry in entries {
            let (rows, path) = match &entry.matching.path {
                PathMatch::Exact(path) => (&mut exact, path.clone()),
                PathMatch::Prefix(path) => (&mut prefix, path.clone()),
            };
            rows.entry(path).or_default().push(entry);
        }
        // The sort is stable: matches of one rule stay in the order of the document.
        let sorted = |(path, mut entries): Row| {
            entries.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
            (path, entries)
        };
        let longest_prefix = prefix.keys().map(|path| path.len()).max().unwrap_or(0);
        Table {
            exact: exact.into_iter().map(sorted).collect(),
            prefix: prefix.into_iter().map(sorted).collect(),
            longest_prefix,
        }
    }

    /// The routes of the entries; one that has several comes as often.
    pub(super) fn routes(&self) -> impl Iterator<Item = &ObjectName> {
        let rows = self.exact.iter().chain(&self.prefix);
        rows.flat_map(|(_, entries)| entries).map(|entry| &entry.rule.route)
    }

    /// The rule that the request means, and the matched prefix where a prefix matched.
    pub(super) fn find(&self, head: &Head<'_>) -> Option<(&Rule, Option<&str>)> {
        if let Some((_, entry)) = first(&self.exact, head.path, head) {
            return Some((&entry.rule, None));
        }
        let mut rest = head.path;
        loop {
            // An element ends at a slash or at the path's end, so that /v1 is no prefix of /v10.
            if rest.len() <= self.longest_prefix
                && let Some((path, entry)) = first(&self.prefix, rest, head)
            {
                return Some((&entry.rule, Some(path)));
            }
            rest = &rest[..rest.rfind('/')?];
        }
    }

    /// All entries in the order in which they are tried.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let mut prefix: Vec<&Row> = self.prefix.iter().collect();
        prefix.sort_by_key(|(path, _)| Reverse(path.len()));
        self.exact.iter().chain(prefix).flat_map(|(_, entries)| entries)
    }
}

fn first<'t>(rows: &'t [Row], path: &str, head: &Head<'_>) -> Option<(&'t str, &'t Entry)> {
    let at = rows.binary_search_by(|(row, _)| (**row).cmp(path)).ok()?;
    let (path, entries) = &rows[at];
    Some((path, entries.iter().find(|entry| entry.matching.meets(head))?))
}

/// What decides between entries of one path: method, header matches, query matches, seniority.
fn precedence(entry: &Entry) -> impl Ord + '_ {
    let Match { method, headers, query, .. } = &entry.matching;
    (method.is_none(), Reverse(headers.len()), Reverse(query.len()), entry.rule.seniority())
}
