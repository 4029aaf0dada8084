//! [`TraceContext`]: the trace that a request belongs to (W3C Trace Context, `traceparent`).

use http::HeaderMap;

/// The identity of a request's own span, and its place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    pub(super) trace: u128,
    /// The client's span; `None` if the trace begins here.
    pub(super) parent: Option<u64>,
    /// Whether the client exports the trace.
    pub(super) is_sampled: bool,
}

impl TraceContext {
    /// Continues the trace of a request's headers, or begins one.
    pub(crate) fn of(headers: &HeaderMap) -> TraceContext {
        let given = headers.get("traceparent").and_then(|value| parse(value.as_bytes()));
        given.unwrap_or_else(|| TraceContext {
            trace: rand::random::<u128>().max(1),
            parent: None,
            is_sampled: false,
        })
    }

    /// Whether this trace is among `share` of all: the same at every gateway.
    pub(super) fn is_among(&self, share: f64) -> bool {
        // The low 56 bits are random (Trace Context, level 2).
        let drawn = self.trace as u64 & ((1 << 56) - 1);
        (drawn as f64) < share * (1u64 << 56) as f64
    }
}

/// `00-<trace, 32 hex>-<parent, 16 hex>-<flags, 2 hex>`; later versions may have more after it.
fn parse(field: &[u8]) -> Option<TraceContext> {
    let text = std::str::from_utf8(field).ok()?;
    let mut parts = text.split('-');
    let version = hex(parts.next()?, 2)?;
    let [trace, parent, flags] =
        [32, 16, 2].map(|length| parts.next().and_then(|part| hex(part, length)));
    let (trace, parent, flags) = (trace?, parent?, flags?);
    let has_rest = parts.next().is_some();
    if version == 0xff || (version == 0 && has_rest) || trace == 0 || parent == 0 {
        return None;
    }
    Some(TraceContext { trace, parent: Some(parent as u64), is_sampled: flags & 1 == 1 })
}

/// A number in lower-case hexadecimal of this length.
fn hex(text: &str, length: usize) -> Option<u128> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == length && text.bytes().all(is_hex))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_is_continued() {
        let context = parse(GIVEN.as_bytes()).unwrap();
        assert_eq!(context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((context.parent, context.is_sampled), (Some(0x00f0_67aa_0ba9_02b7), true));
        assert!(!parse(GIVEN.replace("-01", "-00").as_bytes()).unwrap().is_sampled);
        let later = GIVEN.replacen("00-", "01-", 1) + "-more";
        assert!(parse(later.as_bytes()).is_some());
    }

    #[test]
    fn what_is_no_traceparent_begins_a_trace() {
        for wrong in [
            String::new(),
            GIVEN.to_uppercase(),
            GIVEN.replacen("00-", "ff-", 1),
            GIVEN.to_owned() + "-more",
            GIVEN.replace("00f067aa0ba902b7", "0000000000000000"),
            GIVEN.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GIVEN.replace("-01", "-1"),
        ] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
        let begun = TraceContext::of(&HeaderMap::new());
        assert!(begun.trace != 0 && begun.parent.is_none() && !begun.is_sampled);
    }

    #[test]
    fn a_share_of_the_traces_is_sampled() {
        let sampled = |share| {
            let begun = (0..10_000).map(|_| TraceContext::of(&HeaderMap::new()));
            begun.filter(|context| context.is_among(share)).count()
        };
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 10_000));
        assert!((1_500..2_500).contains(&sampled(0.2)));
    }
}
