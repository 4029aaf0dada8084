//! Plain words: idioms that do not come back, and one meaning for each type name.

use std::collections::BTreeMap;

use super::tree::{Problem, Tree};

/// Words of a private idiom, each with the field's own.
const IDIOMS: [(&str, &str); 10] = [
    ("anew", "again, or say what restarts"),
    ("ear", "subscriber, agent state"),
    ("foreign", "not owned, unknown, of another node"),
    ("hears", "receives, applies"),
    ("lesson", "observation"),
    ("nobody", "no client, no gateway, no agent"),
    ("stranger", "unknown client"),
    ("tells", "reports, publishes, sends, returns"),
    ("told", "reported, received, published, written"),
    ("whoever", "the client, the operator, the caller"),
];

/// Type names that several modules of what ships may declare, each with its reason.
const SHARED_NAMES: [(&str, &str); 0] = [];

/// No idiom in code, comments or documents, and no description that says "the same as the last one".
pub(super) fn idioms(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    let texts = tree.rust().chain(tree.ending(".md"));
    for (path, source) in texts.filter(|(path, _)| !path.ends_with("tidy/language.rs")) {
        for (index, line) in source.text.lines().enumerate() {
            for (idiom, plain) in IDIOMS {
                if words(line).any(|word| word.eq_ignore_ascii_case(idiom)) {
                    let message = format!("`{idiom}`: use a word of the field ({plain})");
                    problems.push(Problem::new(path, index + 1, message));
                }
            }
            if line.trim_start().trim_start_matches("/// ").starts_with("The same") {
                let message = "`The same`: a description stands alone, repeat what it is";
                problems.push(Problem::new(path, index + 1, message));
            }
        }
    }
    problems
}

/// The words of a line: identifiers are split at `_` and before capitals.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphabetic()).flat_map(|identifier| {
        let mut starts: Vec<usize> = identifier
            .char_indices()
            .filter(|(at, c)| *at == 0 || c.is_uppercase())
            .map(|(at, _)| at)
            .collect();
        starts.push(identifier.len());
        starts.windows(2).map(|pair| &identifier[pair[0]..pair[1]]).collect::<Vec<_>>()
    })
}

/// No two modules of what ships declare a type of one name: a reader who met the one takes the other
/// for it.
pub(super) fn one_meaning_a_type(tree: &Tree) -> Vec<Problem> {
    let mut declared: BTreeMap<&str, Vec<(&str, usize)>> = BTreeMap::new();
    for (path, source) in tree.shipped() {
        // A type within a module of tests is indented: it may have any name.
        for (index, line) in source.code.lines().enumerate() {
            if let Some(name) = declared_type(line) {
                declared.entry(name).or_default().push((path, index + 1));
            }
        }
    }
    declared
        .into_iter()
        .filter(|(name, places)| {
            places.len() > 1 && !SHARED_NAMES.iter().any(|(shared, _)| shared == name)
        })
        .map(|(name, places)| {
            let others: Vec<&str> = places[1..].iter().map(|(path, _)| *path).collect();
            let message = format!("`{name}` is declared in {} as well", others.join(", "));
            Problem::new(places[0].0, places[0].1, message)
        })
        .collect()
}

/// The name of the type that a line of a module's top level declares.
fn declared_type(line: &str) -> Option<&str> {
    let mut rest = line;
    if rest.starts_with("pub") {
        let visibility = rest.find([' ', '('])?;
        rest = match rest[visibility..].strip_prefix('(') {
            Some(inner) => inner.split_once(") ")?.1,
            None => &rest[visibility + 1..],
        };
    }
    let kinds = ["struct ", "enum ", "union ", "trait ", "type "];
    let declared = kinds.iter().find_map(|kind| rest.strip_prefix(kind))?;
    declared
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        idioms(&Tree::of(&[(path, text)])).len()
    }

    #[test]
    fn idioms_are_found_in_identifiers_comments_and_documents() {
        assert_eq!(count("a.rs", "let told = 1;"), 1);
        assert_eq!(count("a.rs", "fn was_told() {}"), 1);
        assert_eq!(count("a.rs", "struct ToldPods;"), 1);
        assert_eq!(count("a.rs", "// Whoever asks."), 1);
        assert_eq!(count("README.md", "It is read anew."), 1);
        assert_eq!(count("a.rs", "/// The same of another leg."), 1);
    }

    #[test]
    fn words_that_contain_an_idiom_are_no_idiom() {
        for line in ["let year = renewed;", "linear", "retold", "// in the same pod"] {
            assert_eq!(count("a.rs", line), 0, "{line}");
        }
    }

    #[test]
    fn a_type_name_in_two_modules_is_refused() {
        let first = ("router-common/src/a.rs", "pub struct Frame;\n");
        let second = ("router-userspace/src/b.rs", "pub(crate) enum Frame {}\n");
        let test = ("router-userspace/src/tests/b.rs", "struct Frame;\n");
        let within =
            ("router-userspace/src/c.rs", "#[cfg(test)]\nmod tests {\n    struct Frame;\n}\n");
        let below = ("router-userspace/src/d.rs", "#[cfg(test)]\nmod tests;\n\nstruct Frame;\n");
        assert_eq!(one_meaning_a_type(&Tree::of(&[first, second])).len(), 1);
        assert_eq!(one_meaning_a_type(&Tree::of(&[first, test, within])).len(), 0);
        assert_eq!(one_meaning_a_type(&Tree::of(&[first, below])).len(), 1);
    }
}
