//! The Gateway API's precedence, as a table.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::*;

/// A route's name, its host, its match, its age.
type Row = (&'static str, Option<&'static str>, Match, Option<i64>);

fn name(name: &str) -> ObjectName {
    ObjectName { namespace: "default".into(), name: name.into() }
}

fn attached(rows: &[Row]) -> Vec<AttachedRule> {
    let attach = |(route, host, matching, created): &Row| AttachedRule {
        hostname: host.map(|host| Hostname::parse(host).unwrap()),
        matching: matching.clone(),
        rule: Arc::new(Rule::new(name(route), 0, *created, Timeouts::default(), Vec::new())),
    };
    rows.iter().map(attach).collect()
}

fn fleet(listeners: &[(&'static str, Option<&'static str>, &[Row])]) -> Fleet {
    let listener = |(listener, host, rows): &(&str, Option<&str>, &[Row])| {
        let host = host.map(|host| Hostname::parse(host).unwrap());
        Listener::new(name("gateway"), (*listener).into(), 80, host, attached(rows))
    };
    Fleet { listeners: listeners.iter().map(listener).collect(), ..Fleet::default() }
}

/// What a `GET` for `url` (host and path) with these headers finds.
fn ask(fleet: &Fleet, method: &Method, url: &str, headers: &[(&str, &str)]) -> Option<String> {
    let cut = url.find('/').unwrap();
    let (host, rest) = url.split_at(cut);
    let (path, query) = rest.split_once('?').map_or((rest, None), |(p, q)| (p, Some(q)));
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    let headers: HeaderMap = headers.iter().map(pair).collect();
    let head = Head { method, host: Some(host), path, query, headers: &headers };
    find(fleet, 80, &head, 0).map(|found| found.route().name.to_string())
}

fn get(fleet: &Fleet, url: &str) -> Option<String> {
    ask(fleet, &Method::GET, url, &[])
}

fn prefix(path: &str) -> Match {
    Match { path: PathMatch::prefix(path), ..Match::default() }
}

fn exact(path: &str) -> Match {
    Match { path: PathMatch::Exact(path.into()), ..Match::default() }
}

fn regular(pattern: &str) -> Match {
    Match { path: PathMatch::Regular(Pattern::new(pattern).unwrap()), ..Match::default() }
}

fn with(mut matching: Match, headers: &[(&'static str, &'static str)]) -> Match {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), ValueMatch::Exact(HeaderValue::from_static(value)))
    };
    matching.headers = headers.iter().map(pair).collect();
    matching
}

fn asking(mut matching: Match, query: &[(&str, &str)]) -> Match {
    let matching_query = query.iter();
    let matching_query = matching_query.map(|(n, v)| ((*n).into(), ValueMatch::Exact((*v).into())));
    matching.query = matching_query.collect();
    matching
}

fn only(method: Method, matching: Match) -> Match {
    Match { method: Some(method), ..matching }
}

/// Both orders of the two rows give the same winner.
fn wins(winner: Row, loser: Row, method: &Method, url: &str, headers: &[(&str, &str)]) {
    let expected = Some(winner.0.to_owned());
    for rows in [[winner.clone(), loser.clone()], [loser, winner]] {
        let fleet = fleet(&[("http", None, &rows)]);
        assert_eq!(ask(&fleet, method, url, headers), expected, "{rows:?}");
    }
}

#[test]
fn each_step_of_the_precedence_beats_every_later_one() {
    let heads = [("a", "1"), ("b", "2")];
    let get = Method::GET;
    let url = "www.example.com/v1/chat?x=1&y=2";
    let rich = |matching| asking(with(only(Method::GET, matching), &heads), &[("x", "1")]);
    let steps: [(Row, Row); 15] = [
        (
            ("w", Some("www.example.com"), prefix("/"), None),
            ("l", Some("*.example.com"), rich(exact("/v1/chat")), Some(1)),
        ),
        (
            ("w", Some("*.example.com"), prefix("/"), None),
            ("l", Some("*.com"), rich(exact("/v1/chat")), Some(1)),
        ),
        (("w", Some("*.com"), prefix("/"), None), ("l", None, rich(exact("/v1/chat")), Some(1))),
        (("w", None, exact("/v1/chat"), None), ("l", None, rich(prefix("/v1/chat")), Some(1))),
        (
            ("w", None, exact("/v1/chat"), None),
            ("l", None, rich(regular("/v1/chat|/as/long/as/can/be")), Some(1)),
        ),
        (("w", None, regular("/v1/.*"), None), ("l", None, rich(prefix("/v1/chat")), Some(1))),
        (("w", None, regular("/v1/ch.*"), None), ("l", None, rich(regular("/v1/.*")), Some(1))),
        (("w", None, prefix("/v1/chat"), None), ("l", None, rich(prefix("/v1")), Some(1))),
        (("w", None, prefix("/v1"), None), ("l", None, rich(prefix("/")), Some(1))),
        (
            ("w", None, only(Method::GET, prefix("/v1")), None),
            ("l", None, asking(with(prefix("/v1"), &heads), &[("x", "1")]), Some(1)),
        ),
        (
            ("w", None, with(prefix("/v1"), &heads), None),
            ("l", None, asking(with(prefix("/v1"), &heads[..1]), &[("x", "1")]), Some(1)),
        ),
        (
            ("w", None, asking(prefix("/v1"), &[("x", "1"), ("y", "2")]), None),
            ("l", None, asking(prefix("/v1"), &[("x", "1")]), Some(1)),
        ),
        (("z", None, prefix("/v1"), Some(1)), ("a", None, prefix("/v1"), Some(2))),
        (("z", None, prefix("/v1"), Some(1)), ("a", None, prefix("/v1"), None)),
        (("a", None, prefix("/v1"), Some(1)), ("z", None, prefix("/v1"), Some(1))),
    ];
    for (winner, loser) in steps {
        wins(winner, loser, &get, url, &heads);
    }
}

#[test]
fn the_earlier_rule_of_one_route_wins_and_a_condition_that_fails_falls_through() {
    let rule = |index| Arc::new(Rule::new(name("r"), index, None, Timeouts::default(), vec![]));
    let attach = |index, matching| AttachedRule { hostname: None, matching, rule: rule(index) };
    let rows = vec![
        attach(2, prefix("/v1")),
        attach(1, prefix("/v1")),
        attach(0, with(prefix("/v1"), &[("version", "two")])),
    ];
    let listener = Listener::new(name("g"), "http".into(), 80, None, rows);
    let fleet = Fleet { listeners: vec![listener], ..Fleet::default() };
    let index = |headers: &HeaderMap| {
        let head = Head { method: &Method::GET, host: None, path: "/v1", query: None, headers };
        find(&fleet, 80, &head, 0).unwrap().rule.index
    };
    assert_eq!(index(&HeaderMap::new()), 1);
    let mut headers = HeaderMap::new();
    headers.insert("Version", HeaderValue::from_static("two"));
    assert_eq!(index(&headers), 0);
}

#[test]
fn a_regular_expression_matches_the_whole_path_without_the_query() {
    let rows = [("r", None, regular("/v[12]/(chat/)?completions"), None)];
    let fleet = fleet(&[("http", None, &rows)]);
    for (path, found) in [
        ("/v1/completions", true),
        ("/v2/chat/completions?stream=true", true),
        ("/v3/completions", false),
        ("/v1/completions/more", false),
        ("/api/v1/completions", false),
    ] {
        assert_eq!(get(&fleet, &format!("h{path}")).is_some(), found, "{path}");
    }
}

#[test]
fn headers_and_parameters_match_by_regular_expressions_too() {
    let by = |pattern: &str| Pattern::new(pattern).unwrap();
    let mut matching = prefix("/");
    matching.headers = vec![(HeaderName::from_static("version"), ValueMatch::Regular(by("[23]")))];
    matching.query = vec![("model".into(), ValueMatch::Regular(by("(?i)qwen.*")))];
    let rows = [("r", None, matching, None)];
    let fleet = fleet(&[("http", None, &rows)]);
    let asked = |url: &str, version: &str| {
        ask(&fleet, &Method::GET, url, &[("Version", version)]).is_some()
    };
    assert!(asked("h/?model=Qwen%33-32B", "2"));
    assert!(!asked("h/?model=Qwen3-32B", "23"));
    assert!(!asked("h/?model=not-qwen", "2"));
    assert!(get(&fleet, "h/?model=qwen").is_none(), "without the header");
}

#[test]
fn a_prefix_matches_whole_path_elements() {
    let rows = [("r", None, prefix("/abc/"), None)];
    let fleet = fleet(&[("http", None, &rows)]);
    for path in ["/abc", "/abc/", "/abc/def", "/abc//x"] {
        assert!(get(&fleet, &format!("h{path}")).is_some(), "{path}");
    }
    for path in ["/ab", "/abcd", "/ABC", "/x/abc", "/"] {
        assert!(get(&fleet, &format!("h{path}")).is_none(), "{path}");
    }
}

#[test]
fn an_exact_path_matches_nothing_else() {
    let rows = [("r", None, exact("/v1/"), None)];
    let fleet = fleet(&[("http", None, &rows)]);
    assert!(get(&fleet, "h/v1/").is_some());
    for path in ["/v1", "/v1/x", "/V1/", "/"] {
        assert!(get(&fleet, &format!("h{path}")).is_none(), "{path}");
    }
}

#[test]
fn the_most_specific_listener_takes_the_request_alone() {
    let any = [("any", None, prefix("/"), None)];
    let wild = [("wild", None, prefix("/"), None)];
    let one = [("one", None, prefix("/only"), None)];
    let fleet = fleet(&[
        ("a", None, &any),
        ("b", Some("*.example.com"), &wild),
        ("c", Some("one.example.com"), &one),
    ]);
    assert_eq!(get(&fleet, "example.com/x").as_deref(), Some("any"));
    assert_eq!(get(&fleet, "two.example.com:80/x").as_deref(), Some("wild"));
    assert_eq!(get(&fleet, "ONE.example.com/only").as_deref(), Some("one"));
    assert_eq!(get(&fleet, "one.example.com/x"), None, "another listener's route is not tried");
}

#[test]
fn a_less_specific_host_of_the_same_listener_serves_what_the_specific_one_does_not_match() {
    let rows = [
        ("exact", Some("www.example.com"), prefix("/a"), None),
        ("wild", Some("*.example.com"), prefix("/b"), None),
        ("any", None, prefix("/c"), None),
    ];
    let fleet = fleet(&[("http", None, &rows)]);
    for (path, route) in [("/a", "exact"), ("/b", "wild"), ("/c", "any")] {
        assert_eq!(get(&fleet, &format!("www.example.com{path}")).as_deref(), Some(route));
    }
    assert_eq!(get(&fleet, "example.com/b"), None);
    assert_eq!(get(&fleet, ".example.com/b"), None);
}

#[test]
fn a_method_without_a_rule_is_not_found() {
    let rows = [("r", None, only(Method::POST, prefix("/")), None)];
    let fleet = fleet(&[("http", None, &rows)]);
    assert!(ask(&fleet, &Method::POST, "h/", &[]).is_some());
    assert!(ask(&fleet, &Method::GET, "h/", &[]).is_none());
    assert!(ask(&fleet, &Method::OPTIONS, "h/", &[]).is_none());
}

#[test]
fn rules_are_listed_in_the_order_in_which_they_are_tried() {
    let rows = [
        ("any", None, prefix("/"), None),
        ("long", None, prefix("/v1/chat"), None),
        ("host", Some("a.b"), prefix("/"), None),
        ("exact", None, exact("/v1"), None),
    ];
    let fleet = fleet(&[("http", None, &rows)]);
    let rules = fleet.listeners[0].rules().map(|(_, _, rule)| rule.route.name.to_string());
    assert_eq!(rules.collect::<Vec<_>>(), ["host", "exact", "long", "any"]);
}

mod against_a_direct_implementation {
    //! Compares the compiled table with a direct implementation of the precedence.

    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::*;

    const HOSTS: [Option<&str>; 5] = [None, Some("a.x.y"), Some("x.y"), Some("*.x.y"), Some("*.y")];
    const PATHS: [&str; 6] = ["/", "/p", "/p/", "/p/q", "/pq", "/p/q/r"];

    const PATTERNS: [&str; 6] = ["/", "/p.*", "/[pq]/", ".*/q", "/p?q", "/p(/[qr])+"];

    /// A host, a kind of path, a path, and whether there are a method, a header, a parameter.
    type Choice = (usize, u8, usize, bool, bool, bool);

    fn row() -> impl Strategy<Value = Choice> {
        let flag = any::<bool>;
        (0..HOSTS.len(), 0..3u8, 0..PATHS.len(), flag(), flag(), flag())
    }

    fn direct_lookup<'a>(
        rows: &'a [AttachedRule],
        host: &str,
        head: &Head<'_>,
    ) -> Option<&'a AttachedRule> {
        let holds = |row: &&AttachedRule| {
            let path = match &row.matching.path {
                PathMatch::Exact(path) => **path == *head.path,
                PathMatch::Prefix(path) => head
                    .path
                    .strip_prefix(&**path)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
                PathMatch::Regular(pattern) => pattern.matches(head.path.as_bytes()),
            };
            path && row.matching.meets(head)
                && row.hostname.as_ref().is_none_or(|name| name.matches(host))
        };
        rows.iter().filter(holds).min_by_key(|row| {
            let host = row.hostname.as_ref().map(ToString::to_string);
            let wild = host.as_ref().is_none_or(|host| host.starts_with("*."));
            let (inexact, length) = match &row.matching.path {
                PathMatch::Exact(_) => (0, 0),
                PathMatch::Regular(pattern) => (1, pattern.as_str().len()),
                PathMatch::Prefix(path) => (2, path.len()),
            };
            (
                (wild, Reverse(host.map_or(0, |host| host.len()))),
                (inexact, Reverse(length)),
                row.matching.method.is_none(),
                Reverse(row.matching.headers.len()),
                Reverse(row.matching.query.len()),
                row.rule.route.clone(),
            )
        })
    }

    proptest! {
        #[test]
        fn lookup_finds_what_the_precedence_says(
            rows in prop::collection::vec(row(), 0..24),
            host in prop::sample::select(vec!["a.x.y", "x.y", "b.x.y", "c.b.y", "other"]),
            path in prop::sample::select(vec!["/", "/p", "/p/", "/p/q", "/pq", "/p/q/r/s", "/z"]),
            tagged in any::<bool>(),
        ) {
            let attach = |(index, (host, kind, path, method, header, query)): (usize, &Choice)| {
                let mut matching = match kind {
                    0 => exact(PATHS[*path]),
                    1 => prefix(PATHS[*path]),
                    _ => regular(PATTERNS[*path]),
                };
                if *method { matching = only(Method::GET, matching); }
                if *header { matching = with(matching, &[("tag", "1")]); }
                if *query { matching = asking(matching, &[("q", "1")]); }
                let route = name(&format!("r{index:02}"));
                AttachedRule {
                    hostname: HOSTS[*host].map(|host| Hostname::parse(host).unwrap()),
                    matching,
                    rule: Arc::new(Rule::new(route, 0, None, Timeouts::default(), vec![])),
                }
            };
            let rows: Vec<AttachedRule> = rows.iter().enumerate().map(attach).collect();
            let mut headers = HeaderMap::new();
            if tagged { headers.insert("tag", HeaderValue::from_static("1")); }
            let query = Some(if tagged { "q=1" } else { "q=2" });
            let head = Head { method: &Method::GET, host: Some(host), path, query, headers: &headers };
            let expected = direct_lookup(&rows, host, &head).map(|row| row.rule.route.clone());
            let listener = Listener::new(name("g"), "http".into(), 80, None, rows);
            let fleet = Fleet { listeners: vec![listener], ..Fleet::default() };
            let found = find(&fleet, 80, &head, 0).map(|found| found.route().clone());
            prop_assert_eq!(found, expected);
        }
    }
}
