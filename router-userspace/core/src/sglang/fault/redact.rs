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
    out
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
