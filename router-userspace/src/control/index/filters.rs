//! HTTPRoute's filters -> [`Filters`] and [`Redirect`].

use gateway_api::httproutes::{
    HttpRouteRulesBackendRefsFilters, HttpRouteRulesFilters, HttpRouteRulesFiltersCors,
    HttpRouteRulesFiltersRequestHeaderModifier as RequestModifier,
    HttpRouteRulesFiltersRequestMirror as RequestMirror,
    HttpRouteRulesFiltersRequestMirrorBackendRef as MirrorRef,
    HttpRouteRulesFiltersRequestRedirect as RequestRedirect,
    HttpRouteRulesFiltersRequestRedirectPathType as RedirectPathType,
    HttpRouteRulesFiltersRequestRedirectScheme as RedirectScheme,
    HttpRouteRulesFiltersResponseHeaderModifier as ResponseModifier,
    HttpRouteRulesFiltersType as Type, HttpRouteRulesFiltersUrlRewrite as UrlRewrite,
    HttpRouteRulesFiltersUrlRewritePathType as RewritePathType,
};
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use router_core::route::{
    Cors, CorsList, Filters, HeaderEdit, MirrorShare, OriginPattern, PathEdit, Redirect,
};

use super::build::FieldError;

/// A compiled list of filters.
#[derive(Debug, Default)]
pub(super) struct CompiledFilters {
    pub(super) filters: Filters,
    pub(super) redirect: Option<Redirect>,
    pub(super) mirrors: Vec<MirrorFilter>,
}

/// A RequestMirror filter whose backend is not resolved yet.
#[derive(Debug)]
pub(super) struct MirrorFilter {
    /// The field of the reference, within the rule or backend.
    pub(super) field: String,
    pub(super) reference: MirrorRef,
    pub(super) share: MirrorShare,
}

/// Compiles a rule's filters. With an invalid filter, the rule or backend answers 500, because
/// skipping a filter could expose what it protects.
pub(super) fn compile(filters: &[HttpRouteRulesFilters]) -> Result<CompiledFilters, FieldError> {
    let mut compiled = CompiledFilters::default();
    for (position, filter) in filters.iter().enumerate() {
        let at = format!("filters[{position}]");
        one(filter, &at, &mut compiled).map_err(|(field, code, reason)| {
            let field = if field.is_empty() { at } else { format!("{at}.{field}") };
            (field, code, reason)
        })?;
    }
    Ok(compiled)
}

/// Compiles a backend's filters. They have the same fields as a rule's filters, but other types.
pub(super) fn compile_backend(
    filters: &[HttpRouteRulesBackendRefsFilters],
) -> Result<CompiledFilters, FieldError> {
    let same = |error: serde_json::Error| ("filters".to_owned(), "Invalid", error.to_string());
    let value = serde_json::to_value(filters).map_err(same)?;
    compile(&serde_json::from_value::<Vec<HttpRouteRulesFilters>>(value).map_err(same)?)
}

fn one(
    filter: &HttpRouteRulesFilters,
    at: &str,
    compiled: &mut CompiledFilters,
) -> Result<(), FieldError> {
    let missing = |field: &str| (field.to_owned(), "Invalid", "is missing".to_owned());
    let unsupported = |name: &str| {
        let reason = format!("filter {name} is not supported; its requests get 500");
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
        Type::Cors => {
            let spec = filter.cors.as_ref().ok_or_else(|| missing("cors"))?;
            compiled.filters.cors = Some(cors(spec).map_err(under("cors"))?.into());
        }
        Type::RequestMirror => {
            let spec = filter.request_mirror.as_ref().ok_or_else(|| missing("requestMirror"))?;
            let share = share(spec).map_err(under("requestMirror"))?;
            let field = format!("{at}.requestMirror.backendRef");
            let reference = spec.backend_ref.clone();
            compiled.mirrors.push(MirrorFilter { field, reference, share });
        }
        Type::ExtensionRef => return Err(unsupported("ExtensionRef")),
    }
    Ok(())
}

fn under(parent: &'static str) -> impl Fn(FieldError) -> FieldError {
    move |(field, code, reason)| (format!("{parent}.{field}"), code, reason)
}

fn invalid(field: impl Into<String>, reason: String) -> FieldError {
    (field.into(), "Invalid", reason)
}

fn header(field: &str, name: &str) -> Result<HeaderName, FieldError> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| invalid(field, format!("{name:?} is not a valid header name")))
}

fn value(field: &str, value: &str) -> Result<HeaderValue, FieldError> {
    HeaderValue::from_bytes(value.as_bytes())
        .map_err(|_| invalid(field, format!("{value:?} is not a valid header value")))
}

/// Compiles the three lists of a header modifier. Header names are distinct, so the order of the
/// lists does not matter.
fn edits<'a>(
    set: impl Iterator<Item = (&'a str, &'a str)>,
    add: impl Iterator<Item = (&'a str, &'a str)>,
    remove: impl Iterator<Item = &'a str>,
) -> Result<Vec<HeaderEdit>, FieldError> {
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

fn request_edits(spec: &RequestModifier) -> Result<Vec<HeaderEdit>, FieldError> {
    edits(
        spec.set.iter().flatten().map(|pair| (pair.name.as_str(), pair.value.as_str())),
        spec.add.iter().flatten().map(|pair| (pair.name.as_str(), pair.value.as_str())),
        spec.remove.iter().flatten().map(String::as_str),
    )
}

fn response_edits(spec: &ResponseModifier) -> Result<Vec<HeaderEdit>, FieldError> {
    edits(
        spec.set.iter().flatten().map(|pair| (pair.name.as_str(), pair.value.as_str())),
        spec.add.iter().flatten().map(|pair| (pair.name.as_str(), pair.value.as_str())),
        spec.remove.iter().flatten().map(String::as_str),
    )
}

fn redirect(spec: &RequestRedirect) -> Result<Redirect, FieldError> {
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
                .ok_or_else(|| invalid("port", format!("{port} must be a port from 1 to 65535")))?,
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

fn rewrite(spec: &UrlRewrite, filters: &mut Filters) -> Result<(), FieldError> {
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

fn share(spec: &RequestMirror) -> Result<MirrorShare, FieldError> {
    match (&spec.fraction, spec.percent) {
        (None, None) => Ok(MirrorShare::ALL),
        (None, Some(percent)) => MirrorShare::new(percent, 100)
            .ok_or_else(|| invalid("percent", format!("{percent} must be from 0 to 100"))),
        (Some(fraction), None) => {
            let (numerator, all) = (fraction.numerator, fraction.denominator.unwrap_or(100));
            MirrorShare::new(numerator, all).ok_or_else(|| {
                invalid("fraction", format!("{numerator}/{all} must be from 0 to 1"))
            })
        }
        (Some(_), Some(_)) => {
            Err(invalid("percent", "must not be set together with fraction".to_owned()))
        }
    }
}

fn cors(spec: &HttpRouteRulesFiltersCors) -> Result<Cors, FieldError> {
    let origins = spec.allow_origins.iter().flatten().enumerate().map(|(position, text)| {
        let field = format!("allowOrigins[{position}]");
        OriginPattern::parse(text).map_err(|error| invalid(field, format!("{text:?} {error}")))
    });
    let is_method = |text: &str| Method::from_bytes(text.as_bytes()).is_ok();
    let is_header = |text: &str| HeaderName::from_bytes(text.as_bytes()).is_ok();
    let max_age = spec.max_age.unwrap_or(5);
    Ok(Cors {
        allow_origins: origins.collect::<Result<_, _>>()?,
        allow_credentials: spec.allow_credentials.unwrap_or(false),
        allow_methods: names("allowMethods", spec.allow_methods.as_deref(), is_method)?,
        allow_headers: names("allowHeaders", spec.allow_headers.as_deref(), is_header)?,
        expose_headers: names("exposeHeaders", spec.expose_headers.as_deref(), is_header)?,
        max_age: u32::try_from(max_age).ok().filter(|seconds| *seconds > 0).ok_or_else(|| {
            invalid("maxAge", format!("{max_age} must be at least 1, in seconds"))
        })?,
    })
}

/// Compiles a list of methods or field names, of which `*` alone stands for all.
fn names(
    field: &str,
    list: Option<&[String]>,
    is_valid: impl Fn(&str) -> bool,
) -> Result<CorsList, FieldError> {
    let list = list.unwrap_or_default();
    if list.is_empty() {
        return Ok(CorsList::None);
    }
    if list.iter().any(|name| name == "*") {
        return Ok(CorsList::All);
    }
    if let Some(wrong) = list.iter().find(|name| !is_valid(name)) {
        return Err(invalid(field, format!("{wrong:?} is not a valid name")));
    }
    Ok(CorsList::Names(value(field, &list.join(", "))?))
}

fn full(text: Option<&str>) -> Result<PathEdit, FieldError> {
    Ok(PathEdit::ReplaceFullPath(path("path.replaceFullPath", text)?))
}

fn prefix(text: Option<&str>) -> Result<PathEdit, FieldError> {
    Ok(PathEdit::ReplacePrefixMatch(path("path.replacePrefixMatch", text)?))
}

fn path(field: &str, text: Option<&str>) -> Result<Box<str>, FieldError> {
    let text = text.ok_or_else(|| invalid(field, "is missing".to_owned()))?;
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'?' && byte != b'#';
    match text.bytes().all(plain) {
        true => Ok(text.into()),
        false => Err(invalid(field, format!("{text:?} is not a valid path"))),
    }
}
