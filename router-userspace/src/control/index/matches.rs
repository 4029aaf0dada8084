//! Compiles an HTTPRoute's `matches` to [`Match`]es.

use gateway_api::httproutes::{
    HttpRouteRules, HttpRouteRulesMatches, HttpRouteRulesMatchesHeadersType as HeaderType,
    HttpRouteRulesMatchesMethod as MethodName, HttpRouteRulesMatchesPathType as PathType,
    HttpRouteRulesMatchesQueryParamsType as QueryType,
};
use http::{HeaderName, HeaderValue, Method};
use router_core::route::{Match, PathMatch, Pattern, ValueMatch};

use super::build::FieldError;

/// Compiles the matches of a rule. A rule without matches matches every path.
pub(super) fn compile(rule: &HttpRouteRules) -> Result<Vec<Match>, FieldError> {
    let matches = rule.matches.as_deref().unwrap_or_default();
    if matches.is_empty() {
        return Ok(vec![Match::default()]);
    }
    let numbered = matches.iter().enumerate();
    numbered
        .map(|(position, spec)| {
            one(spec).map_err(|(field, code, reason)| {
                (format!("matches[{position}].{field}"), code, reason)
            })
        })
        .collect()
}

fn one(spec: &HttpRouteRulesMatches) -> Result<Match, FieldError> {
    let mut matching = Match { path: path(spec)?, ..Match::default() };
    matching.method = spec.method.as_ref().map(method);
    for (position, header) in spec.headers.iter().flatten().enumerate() {
        let field = format!("headers[{position}]");
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let name = name.map_err(|_| invalid(&field, "name", &header.name))?;
        let value = match header.r#type {
            Some(HeaderType::RegularExpression) => {
                ValueMatch::Regular(pattern(&field, &header.value)?)
            }
            None | Some(HeaderType::Exact) => {
                let value = HeaderValue::from_bytes(header.value.as_bytes());
                ValueMatch::Exact(value.map_err(|_| invalid(&field, "value", &header.value))?)
            }
        };
        if !matching.headers.iter().any(|(known, _)| *known == name) {
            matching.headers.push((name, value));
        }
    }
    for (position, query) in spec.query_params.iter().flatten().enumerate() {
        let value = match query.r#type {
            Some(QueryType::RegularExpression) => {
                ValueMatch::Regular(pattern(&format!("queryParams[{position}]"), &query.value)?)
            }
            None | Some(QueryType::Exact) => ValueMatch::Exact(query.value.as_str().into()),
        };
        if !matching.query.iter().any(|(known, _)| **known == *query.name) {
            matching.query.push((query.name.as_str().into(), value));
        }
    }
    Ok(matching)
}

fn path(spec: &HttpRouteRulesMatches) -> Result<PathMatch, FieldError> {
    let Some(path) = &spec.path else { return Ok(Match::default().path) };
    let value = path.value.as_deref().unwrap_or("/");
    let exact = match path.r#type {
        Some(PathType::RegularExpression) => return pattern("path", value).map(PathMatch::Regular),
        Some(PathType::Exact) => true,
        None | Some(PathType::PathPrefix) => false,
    };
    let elements = || value.split('/').skip(1);
    let dotted = elements().any(|element| element == "." || element == "..");
    if !value.starts_with('/') || dotted || value.contains("//") || value.contains(['?', '#']) {
        return Err(invalid("path", "value", value));
    }
    Ok(if exact { PathMatch::Exact(value.into()) } else { PathMatch::prefix(value) })
}

fn method(name: &MethodName) -> Method {
    match name {
        MethodName::Get => Method::GET,
        MethodName::Head => Method::HEAD,
        MethodName::Post => Method::POST,
        MethodName::Put => Method::PUT,
        MethodName::Delete => Method::DELETE,
        MethodName::Connect => Method::CONNECT,
        MethodName::Options => Method::OPTIONS,
        MethodName::Trace => Method::TRACE,
        MethodName::Patch => Method::PATCH,
    }
}

fn pattern(field: &str, text: &str) -> Result<Pattern, FieldError> {
    Pattern::new(text).map_err(|bad| {
        let reason = format!("{text:?} is not a supported regular expression: {bad}");
        (format!("{field}.value"), "UnsupportedValue", reason)
    })
}

fn invalid(field: &str, part: &str, value: &str) -> FieldError {
    (format!("{field}.{part}"), "Invalid", format!("{value:?} is not valid"))
}
