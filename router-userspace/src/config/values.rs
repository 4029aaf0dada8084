//! How values of flags are written: sizes, durations and addresses.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use router_core::fleet::AgentAddress;

use super::ranges::MAX_DURATION;
use crate::control::duration as units;

/// Units of sizes, in bytes. Those of Kubernetes, and with a `B` behind them.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("k", 1000),
    ("K", 1000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
];

/// Parses a number of bytes: `67108864`, `64Mi`, `64MiB`, `500MB` or `1.5Gi`.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let bad = || format!("`{text}` must be a number of bytes, such as 67108864, 64Mi or 1GiB");
    if text.starts_with('-') {
        return Err(format!("`{text}` must not be negative"));
    }
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.strip_suffix('B').unwrap_or(unit);
    let unit = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || fraction.len() > 9 {
        return Err(bad());
    }
    let too_large = || format!("`{text}` must be at most {} bytes", usize::MAX);
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let tenths: u64 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| bad())? };
    let part = u128::from(tenths) * u128::from(unit) / 10u128.pow(fraction.len() as u32);
    let bytes = u128::from(whole) * u128::from(unit) + part;
    usize::try_from(bytes).map_err(|_| too_large())
}

/// Parses `1h`, `1h30m`, `300s` or `100ms`. A number without a unit is an error.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if text.starts_with('-') {
        return Err(format!("`{text}` must not be negative"));
    }
    if text.parse::<f64>().is_ok() {
        return Err(format!("`{text}` must have a unit, such as {text}s: ms, s, m or h"));
    }
    let bad = |_| format!("`{text}` must be a number with a unit, such as 30s, 100ms or 1h30m");
    let range =
        || format!("`{text}` must be above 0 and at most {}h", MAX_DURATION.as_secs() / 3600);
    let duration = units::parse(text).map_err(bad)?;
    match duration.is_zero() || duration > MAX_DURATION {
        true => Err(range()),
        false => Ok(duration),
    }
}

/// Parses a duration of 1 ms to a minute; a number without a unit is milliseconds.
pub(crate) fn milliseconds(text: &str) -> Result<Duration, String> {
    let milliseconds = || text.parse().ok().map(Duration::from_millis);
    let given = milliseconds().or_else(|| duration(text).ok());
    given
        .filter(|given| (Duration::from_millis(1)..=Duration::from_secs(60)).contains(given))
        .ok_or_else(|| {
            "expected milliseconds from 1 to 60000, or a duration such as 10ms".to_owned()
        })
}

/// Parses `IP:PORT`, or `localhost:PORT`.
pub(crate) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let local = || {
        let port = text.strip_prefix("localhost:")?.parse().ok()?;
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    };
    text.parse()
        .ok()
        .or_else(local)
        .ok_or_else(|| format!("`{text}` must be IP:PORT or localhost:PORT"))
}

/// Parses `IP:PORT` or `IP:PORT=NODE`.
pub(super) fn agent(text: &str) -> Result<AgentAddress, String> {
    let (address, node) = match text.split_once('=') {
        Some((address, node)) => (address, Some(node)),
        None => (text, None),
    };
    let address = socket_address(address)?;
    if node.is_some_and(str::is_empty) {
        return Err(format!("`{text}` must name a node after `=`"));
    }
    Ok(AgentAddress { address, node: node.map(Into::into), name: text.into() })
}

/// The flag and its value where a value begins with `-` and a digit, which clap takes for another flag.
pub(super) fn negative_value(arguments: &[String]) -> Option<(&str, &str)> {
    let is_negative = |value: &str| {
        let digit = value.strip_prefix('-').and_then(|rest| rest.chars().next());
        digit.is_some_and(|c| c.is_ascii_digit())
    };
    arguments.windows(2).find_map(|pair| {
        let [flag, value] = pair else { return None };
        let names_flag = flag.starts_with("--") && !flag.contains('=');
        (names_flag && is_negative(value)).then_some((flag.as_str(), value.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("67108864", 64 << 20),
            ("64Mi", 64 << 20),
            ("64MiB", 64 << 20),
            ("1Gi", 1 << 30),
            ("1.5GiB", 3 << 29),
            ("500MB", 500_000_000),
            ("8k", 8_000),
            ("8KiB", 8192),
            ("10B", 10),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "Mi", ".5Mi", "1.", "1 Mi", "1Xi", "-1", "1e9", "99999999999Gi", "1.2.3M"]
        {
            let error = size(wrong).unwrap_err();
            assert!(error.contains(&format!("`{wrong}`")), "{wrong}: {error}");
        }
    }

    #[test]
    fn durations_carry_their_unit() {
        for (text, expected) in [
            ("24h", 86_400_000),
            ("250ms", 250),
            ("1.5s", 1500),
            ("1h30m", 5_400_000),
            ("1m0.5s", 60_500),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        for wrong in ["5", "", "s", "-1s", "0s", "1e99h", "5 s", "8761h", "NaNs", "infs"] {
            assert!(duration(wrong).unwrap_err().contains(&format!("`{wrong}`")), "{wrong}");
        }
        assert!(duration("5").unwrap_err().contains("5s"));
        assert!(duration("-1s").unwrap_err().contains("negative"));
        for text in ["10", "10ms", "0.01s"] {
            assert_eq!(milliseconds(text), Ok(Duration::from_millis(10)), "{text}");
        }
        for wrong in ["0", "60001", "61s", "ten"] {
            assert!(milliseconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_may_name_the_local_host() {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 9901));
        assert_eq!(socket_address("localhost:9901"), Ok(local));
        assert_eq!(socket_address("127.0.0.1:9901"), Ok(local));
        for wrong in ["", "localhost", "localhost:", "localhost:65536", "example.com:80", ":9901"] {
            assert!(socket_address(wrong).unwrap_err().contains("localhost:PORT"), "{wrong}");
        }
    }

    #[test]
    fn a_negative_value_is_found_with_its_flag() {
        let found = |line: &str| {
            let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
            negative_value(&arguments).map(|(flag, value)| format!("{flag} {value}"))
        };
        let line = "pd-router gateway --manifests d --probe-timeout -1s";
        assert_eq!(found(line).as_deref(), Some("--probe-timeout -1s"));
        assert_eq!(found("pd-router gateway --manifests d --merge-slashes --port 1"), None);
        assert_eq!(found("pd-router gateway --probe-timeout=-1s"), None);
    }
}
