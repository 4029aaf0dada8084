//! HTTPRoute's filters -> [`Filters`] and [`Redirect`].

use gateway_api::httproutes::{
    HttpRouteRulesBackendRefsFilters, HttpRouteRulesFilters,
    HttpRouteRulesFiltersRequestHeaderModifier as RequestModifier,
    HttpRouteRulesFiltersRequestRedirect as RequestRedirect,
    HttpRouteRulesFiltersRequestRedirectPathType as RedirectPathType,
    HttpRouteRulesFiltersRequestRedirectScheme as RedirectScheme,
    HttpRouteRulesFiltersResponseHeaderModifier as ResponseModifier,
    HttpRouteRulesFiltersType as Type, HttpRouteRulesFiltersUrlRewrite as UrlRewrite,
    HttpRouteRulesFiltersUrlRewritePathType as RewritePathType,
};
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, StatusCode};
use router_core::route::{Filters, HeaderEdit, PathEdit, Redirect};

/// A list of filters, compiled.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    pub(super) filters: Filters,
    pub(super) redirect: Option<Redirect>,
}

/// Why a filter cannot be honoured: the field beneath the list, a code, a reason. The rule or
/// backend that has it answers 500, since skipping a filter could expose what it protects.
pub(super) type Fault = (String, &'static str, String);

/// Compiles a rule's filters.
pub(super) fn compile(filters: &[HttpRouteRulesFilters]) -> Result<Compiled, Fault> {
    let mut compiled = Compiled::default();
    for (position, filter) in filters.iter().enumerate() {
        let at = format!("filters[{position}]");
        one(filter, &mut compiled).map_err(|(field, code, reason)| {
            let field = if field.is_empty() { at } else { format!("{at}.{field}") };
            (field, code, reason)
        })?;
    }
    Ok(compiled)
}

/// Compiles a backend's filters, which have the shape of a rule's and types of their own.
pub(super) fn compile_backend(
    filters: &[HttpRouteRulesBackendRefsFilters],
) -> Result<Compiled, Fault> {
    let same = |error: serde_json::Error| ("filters".to_owned(), "Invalid", error.to_string());
    let value = serde_json::to_value(filters).map_err(same)?;
    compile(&serde_json::from_value::<Vec<HttpRouteRulesFilters>>(value).map_err(same)?)
}

fn one(filter: &HttpRouteRulesFilters, compiled: &mut Compiled) -> Result<(), Fault> {
    let missing = |field: &str| (field.to_owned(), "Invalid", "is missing".to_owned());
    let unsupported = |name: &str| {
        let reason = format!("{name} is not served; the requests that it is for answer 500");
        (String::new(), "UnsupportedValue", reason)
    };
    match filter.r#type {
        Type::RequestHeaderModifier => {
            let field = "requestHeaderModifier";
            let edits = filter.request_header_modifier.as_ref().ok_or_else(|| missing(field))?;
            compiled.filters.request.extend(request_edits(edits).map_err(under(field))?);
        }
        Type::ResponseHeaderModifier => {
            let field = "responseHeaderModifier";
            let edits = filter.response_header_modifier.as_ref().ok_or_else(|| missing(field))?;
            compiled.filters.response.extend(response_edits(edits).map_err(under(field))?);
        }
        Type::RequestRedirect => {
            let field = "requestRedirect";
            let spec = filter.request_redirect.as_ref().ok_or_else(|| missing(field))?;
            compiled.redirect = Some(redirect(spec).map_err(under(field))?);
        }
        Type::UrlRewrite => {
            let spec = filter.url_rewrite.as_ref().ok_or_else(|| missing("urlRewrite"))?;
            rewrite(spec, &mut compiled.filters).map_err(under("urlRewrite"))?;
        }
        Type::RequestMirror => return Err(unsupported("RequestMirror")),
        Type::ExtensionRef => return Err(unsupported("ExtensionRef")),
        Type::Cors => return Err(unsupported("CORS")),
    }
    Ok(())
}

fn under(parent: &'static str) -> impl Fn(Fault) -> Fault {
    move |(field, code, reason)| (format!("{parent}.{field}"), code, reason)
}

fn invalid(field: impl Into<String>, reason: String) -> Fault {
    (field.into(), "Invalid", reason)
}

fn header(field: &str, name: &str) -> Result<HeaderName, Fault> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| invalid(field, format!("{name:?} is no header name")))
}

fn value(field: &str, value: &str) -> Result<HeaderValue, Fault> {
    HeaderValue::from_bytes(value.as_bytes())
        .map_err(|_| invalid(field, format!("{value:?} is no header value")))
}

/// Edits from the three lists of a modifier. Their names are distinct, so the order of the lists
/// does not matter.
fn edits<'a>(
    set: impl Iterator<Item = (&'a str, &'a str)>,
    add: impl Iterator<Item = (&'a str, &'a str)>,
    remove: impl Iterator<Item = &'a str>,
) -> Result<Vec<HeaderEdit>, Fault> {
    let mut edits = Vec::new();
    for (name, text) in set {
        edits.push(HeaderEdit::Set(header("set", name)?, value("set", text)?));
    }
    for (name, text) in add {
        edits.push(HeaderEdit::Add(header("add", name)?, value("add", text)?));
    }
    for name in remove {
        edits.push(HeaderEdit::Remove(header("remove", name)?));
    }
    Ok(edits)
}

fn request_edits(spec: &RequestModifier) -> Result<Vec<HeaderEdit>, Fault> {
    edits(
        spec.set.iter().flatten().map(|pair| (pair.name.as_str(), pair.value.as_str())),
        spec.add.iter().flatten().map(|pair| (pair.name.as_str(), pair.value.as_str())),
        spec.remove.iter().flatten().map(String::as_str),
    )
}

fn response_edits(spec: &ResponseModifier) -> Result<Vec<HeaderEdit>, Fault> {
    edits(
        spec.set.iter().flatten().map(|pair| (pair.name.as_str(), pair.value.as_str())),
        spec.add.iter().flatten().map(|pair| (pair.name.as_str(), pair.value.as_str())),
        spec.remove.iter().flatten().map(String::as_str),
    )
}

fn redirect(spec: &RequestRedirect) -> Result<Redirect, Fault> {
    let status = spec.status_code.unwrap_or(302);
    let known = [301, 302, 303, 307, 308].contains(&status);
    let status = u16::try_from(status).ok().filter(|_| known);
    let status = status
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| invalid("statusCode", "must be 301, 302, 303, 307 or 308".to_owned()))?;
    let port = match spec.port {
        None => None,
        Some(port) => Some(
            u16::try_from(port)
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| invalid("port", format!("{port} is no port")))?,
        ),
    };
    let path = spec.path.as_ref().map(|path| match path.r#type {
        RedirectPathType::ReplaceFullPath => full(path.replace_full_path.as_deref()),
        RedirectPathType::ReplacePrefixMatch => prefix(path.replace_prefix_match.as_deref()),
    });
    let scheme = spec.scheme.as_ref().map(|scheme| match scheme {
        RedirectScheme::Http => Scheme::HTTP,
        RedirectScheme::Https => Scheme::HTTPS,
    });
    let hostname = spec.hostname.as_deref().map(Into::into);
    Ok(Redirect { scheme, hostname, port, path: path.transpose()?, status })
}

fn rewrite(spec: &UrlRewrite, filters: &mut Filters) -> Result<(), Fault> {
    if let Some(host) = &spec.hostname {
        value("hostname", host)?;
        filters.host = Some(host.as_str().into());
    }
    if let Some(path) = &spec.path {
        filters.path = Some(match path.r#type {
            RewritePathType::ReplaceFullPath => full(path.replace_full_path.as_deref())?,
            RewritePathType::ReplacePrefixMatch => prefix(path.replace_prefix_match.as_deref())?,
        });
    }
    Ok(())
}

fn full(text: Option<&str>) -> Result<PathEdit, Fault> {
    Ok(PathEdit::ReplaceFullPath(path("path.replaceFullPath", text)?))
}

fn prefix(text: Option<&str>) -> Result<PathEdit, Fault> {
    Ok(PathEdit::ReplacePrefixMatch(path("path.replacePrefixMatch", text)?))
}

fn path(field: &str, text: Option<&str>) -> Result<Box<str>, Fault> {
    let text = text.ok_or_else(|| invalid(field, "is missing".to_owned()))?;
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'?' && byte != b'#';
    match text.bytes().all(plain) {
        true => Ok(text.into()),
        false => Err(invalid(field, format!("{text:?} is no path"))),
    }
}
