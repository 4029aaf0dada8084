//! Durations as Go and the Gateway API (GEP-2257) write them: `24h`, `1h30m`, `500ms`, `0s`.

use std::time::Duration;

/// Parses a duration. The error names the text and the reason.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let bad = || format!("{text:?} is not a duration; use for example 24h, 1h30m, 500ms or 0s");
    let mut rest = text;
    let mut total_ns: u128 = 0;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_ascii_alphabetic() || c == 'µ' || c == 'μ');
        let (number, after) = rest.split_at(end.ok_or_else(bad)?);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit_ns: u128 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "µs" | "μs" => 1_000,
            "ns" => 1,
            _ => return Err(bad()),
        };
        let term = scaled(number, unit_ns).ok_or_else(bad)?;
        total_ns = total_ns.checked_add(term).ok_or_else(bad)?;
        rest = after;
    }
    // Go's limit, about 292 years.
    match i64::try_from(total_ns) {
        Ok(ns) => Ok(Duration::from_nanos(ns.unsigned_abs())),
        Err(_) => Err(format!("{text:?} is longer than the maximum of 292 years")),
    }
}

/// `number` may have a fraction. Digits below a nanosecond are dropped.
fn scaled(number: &str, unit_ns: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.len() <= 18 && text.bytes().all(|b| b.is_ascii_digit());
    if number.len() == usize::from(number.contains('.')) || !digits(whole) || !digits(fraction) {
        return None;
    }
    let value = |text: &str| text.bytes().fold(0u128, |sum, b| sum * 10 + u128::from(b - b'0'));
    let places = u32::try_from(fraction.len()).ok()?;
    Some(value(whole) * unit_ns + value(fraction) * unit_ns / 10u128.pow(places))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_as_in_go() {
        for (text, ms) in [
            ("24h", 86_400_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
            ("0", 0),
            ("500ms", 500),
            ("1.5s", 1_500),
            (".5s", 500),
            ("1m0.25s", 60_250),
            ("99999h59m59s999ms", 359_999_999_999),
            ("2000us", 2),
            ("2000µs", 2),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn an_invalid_duration_is_quoted_in_the_error() {
        for text in ["", "24", "h", ".s", "-1s", "1 h", "1d", "1h 30m", "1.2.3s", "99999999999999h"]
        {
            let error = parse(text).unwrap_err();
            assert!(error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }
}
