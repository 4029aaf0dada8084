//! Removes engine addresses from messages for clients.

use std::net::IpAddr;

const PLACEHOLDER: &str = "<engine>";

/// Replaces URLs, IP addresses (with and without port) and `host.name:port` by `<engine>`.
///
/// ```
/// use router_core::sglang::fault::strip_addresses;
///
/// assert_eq!(
///     strip_addresses("prefill (bootstrap_addr: 10.77.0.2:8998) is dead: http://p-0.svc:30000/x"),
///     "prefill (bootstrap_addr: <engine>) is dead: <engine>",
/// );
/// ```
pub fn strip_addresses(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while !rest.is_empty() {
        let end = rest.find(breaks).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        out.push_str(&redacted(word));
        let mut chars = after.chars();
        out.extend(chars.next());
        rest = chars.as_str();
    }
    strip_inside(&out)
}

/// Replaces what is left inside words: IPv4 addresses, IPv6 addresses in brackets, and names of a
/// cluster, each with a port if it has one.
fn strip_inside(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric() || c == '[') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = match inner_address(rest) {
            Some(length) => {
                out.push_str(PLACEHOLDER);
                length + port(&rest[length..])
            }
            None => {
                let length = plain_run(rest);
                out.push_str(&rest[..length]);
                length
            }
        };
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// The length of the text that cannot begin an address after its first character: letters, or a
/// number with its dots.
fn plain_run(text: &str) -> usize {
    let number = |c: char| c.is_ascii_digit() || c == '.';
    let end = match text.starts_with(number) {
        true => text.find(|c: char| !number(c)),
        false => text[1..].find(|c: char| !c.is_ascii_alphabetic()).map(|at| at + 1),
    };
    end.unwrap_or(text.len())
}

/// The length of the address that the text begins with.
fn inner_address(text: &str) -> Option<usize> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let end = bracketed.find(']')?;
        let address = bracketed[..end].split('%').next().unwrap_or_default();
        return address.parse::<std::net::Ipv6Addr>().ok().map(|_| end + 2);
    }
    let ending = |run: fn(char) -> bool| {
        let end = text.find(|c: char| !run(c)).unwrap_or(text.len());
        text[..end].trim_end_matches(['.', '-', '_'])
    };
    let number = ending(|c| c.is_ascii_digit() || c == '.');
    if number.parse::<std::net::Ipv4Addr>().is_ok() {
        return Some(number.len());
    }
    let name = ending(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    let of_a_cluster = name.contains(".svc.")
        || name.contains(".pod.")
        || [".svc", ".local", ".internal"].iter().any(|end| name.ends_with(end));
    of_a_cluster.then_some(name.len())
}

/// The length of the port that the text begins with.
fn port(text: &str) -> usize {
    let Some(digits) = text.strip_prefix(':') else { return 0 };
    let length = digits.bytes().take_while(u8::is_ascii_digit).count();
    if (1..=5).contains(&length) { length + 1 } else { 0 }
}

/// The separators of words. `/` is not one, so that URLs stay whole.
fn breaks(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, '"' | '\'' | '`' | '(' | ')' | '<' | '>' | '=' | ',' | ';' | '|')
}

fn redacted(word: &str) -> String {
    if let Some(scheme) = word.find("://") {
        let start = word[..scheme].trim_end_matches(|c: char| c.is_ascii_alphanumeric()).len();
        return format!("{}{PLACEHOLDER}", parts(&word[..start]));
    }
    parts(word)
}

fn parts(word: &str) -> String {
    let parts: Vec<String> = word.split('/').map(part).collect();
    parts.join("/")
}

/// Redacts a word, or a part of it between slashes. Punctuation around it stays.
fn part(word: &str) -> String {
    let core = word.trim_start_matches('{').trim_end_matches(['.', ':', '!', '?', '}']);
    if !is_address(core) {
        return word.to_owned();
    }
    word.replacen(core, PLACEHOLDER, 1)
}

fn is_address(word: &str) -> bool {
    let bare = word.strip_prefix('[').and_then(|w| w.strip_suffix(']')).unwrap_or(word);
    let unscoped = bare.split('%').next().unwrap_or(bare);
    if unscoped.parse::<IpAddr>().is_ok() {
        return unscoped != "::";
    }
    let Some((host, port)) = word.rsplit_once(':') else { return false };
    let named = host.contains(|c: char| c.is_ascii_alphabetic())
        && (host == "localhost" || host.contains(['.', '-']))
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    let address = host.parse::<IpAddr>().is_ok() || host.starts_with('[');
    let digits = port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    // Words followed by a number are common, names with a short port are not.
    digits && (address && !port.is_empty() || named && port.len() >= 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_redacted_and_other_words_kept() {
        for (message, want) in [
            ("at 10.0.0.1.", "at <engine>."),
            ("peer 10.0.0.1:16384: closed", "peer <engine>: closed"),
            ("host='10.0.0.1', port=8998", "host='<engine>', port=8998"),
            ("bootstrap_addr=10.0.0.1:8998/route", "bootstrap_addr=<engine>/route"),
            ("[fd00::1]:8998 and fe80::1%eth0", "<engine> and <engine>"),
            ("tcp://10.0.0.1:4343", "<engine>"),
            ("prefill-0.pd.svc:30000 refused", "<engine> refused"),
            ("localhost:30000", "<engine>"),
            ("addr:10.0.0.1:8998", "addr:<engine>"),
            ("[10.0.0.1:8998]", "[<engine>]"),
            ("10.0.0.1:8998-10.0.0.2:9000", "<engine>-<engine>"),
            ("10.0.0.1:8998_0_1_0", "<engine>_0_1_0"),
            ("tcp:10.0.0.1 a@10.0.0.1 10.0.0.1*", "tcp:<engine> a@<engine> <engine>*"),
            ("x[fd00::1]:8998_0", "x<engine>_0"),
            ("at prefill-0.pd.svc.cluster.local.", "at <engine>."),
            ("ip-10-0-0-1.ec2.internal:80", "<engine>"),
            ("version 0.5.12, [1, 2], a.b.c", "version 0.5.12, [1, 2], a.b.c"),
            ("10.0.0.1:80/http://10.0.0.2 é://", "<engine>/<engine> é<engine>"),
            (
                "KVPoll.Bootstrapping after 8.0s at 12:34:56",
                "KVPoll.Bootstrapping after 8.0s at 12:34:56",
            ),
            ("token-ids:12 of layer.0:16", "token-ids:12 of layer.0:16"),
            ("std::bad_alloc; room 5: a/b n/a", "std::bad_alloc; room 5: a/b n/a"),
            ("KVTransferError(bootstrap_room=5): x", "KVTransferError(bootstrap_room=5): x"),
        ] {
            assert_eq!(strip_addresses(message), want);
        }
    }

    proptest! {
        #[test]
        fn never_panics(message in "([a-zé/:.\\[\\]0-9 ]|://|\\PC){0,40}") {
            strip_addresses(&message);
        }

        #[test]
        fn no_address_is_left(a: [u8; 4], port: u16, before in "[a-z (='\"]{0,5}[ (='\"]", after in "[ ),/'\"].{0,5}") {
            let address = std::net::Ipv4Addr::from(a).to_string();
            let message = format!("{before}{address}:{port}{after}{before}{address}{after}");
            prop_assert!(!strip_addresses(&message).contains(&address));
        }
    }
}
