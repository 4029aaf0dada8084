//! [`PathTable`]: the matches of one host name by path, in the Gateway API's precedence.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::matches::{Match, PathMatch};
use super::{Head, Rule};
use crate::fleet::ObjectName;

/// A match and its rule.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RuleEntry {
    #[serde(flatten)]
    pub(super) matching: Match,
    #[serde(flatten)]
    pub(super) rule: Arc<Rule>,
}

/// The entries of one path, the preferred one first.
type PathRow = (Box<str>, Vec<RuleEntry>);

/// Entries by path: exact paths are tried first, then regular expressions, then the longest prefix.
/// All lists are sorted.
#[derive(Clone, Debug, Default)]
pub(super) struct PathTable {
    exact: Vec<PathRow>,
    regular: Vec<RuleEntry>,
    prefix: Vec<PathRow>,
    longest_prefix: usize,
}

impl PathTable {
    pub(super) fn new(entries: Vec<RuleEntry>) -> PathTable {
        let mut exact: BTreeMap<Box<str>, Vec<RuleEntry>> = BTreeMap::new();
        let mut prefix: BTreeMap<Box<str>, Vec<RuleEntry>> = BTreeMap::new();
        let mut regular = Vec::new();
        for entry in entries {
            let (rows, path) = match &entry.matching.path {
                PathMatch::Exact(path) => (&mut exact, path.clone()),
                PathMatch::Prefix(path) => (&mut prefix, path.clone()),
                PathMatch::Regular(_) => {
                    regular.push(entry);
                    continue;
                }
            };
            rows.entry(path).or_default().push(entry);
        }
        // The sort is stable: matches of one rule stay in document order.
        let sorted = |(path, mut entries): PathRow| {
            entries.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
            (path, entries)
        };
        regular.sort_by(|a, b| {
            (Reverse(pattern(a).len()), precedence(a))
                .cmp(&(Reverse(pattern(b).len()), precedence(b)))
        });
        let longest_prefix = prefix.keys().map(|path| path.len()).max().unwrap_or(0);
        PathTable {
            exact: exact.into_iter().map(sorted).collect(),
            regular,
            prefix: prefix.into_iter().map(sorted).collect(),
            longest_prefix,
        }
    }

    /// The routes of all entries, with duplicates.
    pub(super) fn routes(&self) -> impl Iterator<Item = &ObjectName> {
        let rows = self.exact.iter().chain(&self.prefix).flat_map(|(_, entries)| entries);
        rows.chain(&self.regular).map(|entry| &entry.rule.route)
    }

    /// The rule for a request, and the matched prefix if a prefix matched.
    pub(super) fn find(&self, head: &Head<'_>) -> Option<(&Rule, Option<&str>)> {
        if let Some((_, entry)) = first(&self.exact, head.path, head) {
            return Some((&entry.rule, None));
        }
        let matches = |entry: &&RuleEntry| match &entry.matching.path {
            PathMatch::Regular(pattern) => {
                pattern.matches(head.path.as_bytes()) && entry.matching.meets(head)
            }
            _ => false,
        };
        if let Some(entry) = self.regular.iter().find(matches) {
            return Some((&entry.rule, None));
        }
        let mut rest = head.path;
        loop {
            // An element ends at a slash or at the end of the path, so /v1 is not a prefix of /v10.
            if rest.len() <= self.longest_prefix
                && let Some((path, entry)) = first(&self.prefix, rest, head)
            {
                return Some((&entry.rule, Some(path)));
            }
            rest = &rest[..rest.rfind('/')?];
        }
    }

    /// All entries in the order in which they are tried.
    pub(super) fn entries(&self) -> impl Iterator<Item = &RuleEntry> {
        let mut prefix: Vec<&PathRow> = self.prefix.iter().collect();
        prefix.sort_by_key(|(path, _)| Reverse(path.len()));
        let exact = self.exact.iter().flat_map(|(_, entries)| entries);
        let prefix = prefix.into_iter().flat_map(|(_, entries)| entries);
        exact.chain(&self.regular).chain(prefix)
    }
}

/// The text of a regular expression.
fn pattern(entry: &RuleEntry) -> &str {
    match &entry.matching.path {
        PathMatch::Regular(pattern) => pattern.as_str(),
        PathMatch::Exact(path) | PathMatch::Prefix(path) => path,
    }
}

fn first<'t>(rows: &'t [PathRow], path: &str, head: &Head<'_>) -> Option<(&'t str, &'t RuleEntry)> {
    let at = rows.binary_search_by(|(row, _)| (**row).cmp(path)).ok()?;
    let (path, entries) = &rows[at];
    Some((path, entries.iter().find(|entry| entry.matching.meets(head))?))
}

/// The order of entries of one path: method, header matches, query matches, then
/// [`Rule::seniority`].
fn precedence(entry: &RuleEntry) -> impl Ord + '_ {
    let Match { method, headers, query, .. } = &entry.matching;
    (method.is_none(), Reverse(headers.len()), Reverse(query.len()), entry.rule.seniority())
}
