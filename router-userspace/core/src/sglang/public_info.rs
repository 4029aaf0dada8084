//! The part of an engine's `/server_info` that clients may see.
//!
//! Engines answer with all of their settings: API keys, passwords, files, addresses, the command line.
//! Numbers and switches are safe in every version; text is passed on by an allow list, so that a
//! setting of a later version stays private until somebody has looked at it.

use super::json::{JsonType, Raw};

/// Text that is passed on, by the name of its member.
const PUBLIC_TEXT: [&str; 27] = [
    "attention_backend",
    "decode_attention_backend",
    "device",
    "disaggregation_mode",
    "disaggregation_transfer_backend",
    "dtype",
    "grammar_backend",
    "kv_cache_dtype",
    "load_balance_method",
    "load_format",
    "lora_backend",
    "model_impl",
    "model_path",
    "moe_a2a_backend",
    "moe_runner_backend",
    "prefill_attention_backend",
    "quantization",
    "reasoning_parser",
    "sampling_backend",
    "schedule_policy",
    "served_model_name",
    "speculative_algorithm",
    "status",
    "tokenizer_path",
    "tool_call_parser",
    "version",
    "weight_version",
];

/// Appends `value`, the member `name`, without text that is not public and without ports. Numbers keep
/// their format.
///
/// Returns false if the value is private: the caller removes what was appended.
pub(super) fn write_public(name: &str, value: Raw<'_>, out: &mut Vec<u8>) -> bool {
    match value.kind() {
        JsonType::Object => {
            let members = value.members();
            out.push(b'{');
            write_each(members, out, |member, out| {
                let Some(name) = member.key.as_str() else { return false };
                out.extend_from_slice(member.key.bytes());
                out.push(b':');
                write_public(&name, member.value, out)
            });
            out.push(b'}');
            true
        }
        JsonType::Array => {
            out.push(b'[');
            write_each(value.elements(), out, |element, out| write_public(name, element, out));
            out.push(b']');
            true
        }
        JsonType::String if !PUBLIC_TEXT.contains(&name) => false,
        JsonType::Number if is_port(name) => false,
        _ => {
            out.extend_from_slice(value.bytes());
            true
        }
    }
}

/// Appends the items for which `write` returns true, separated by commas. What it appends of the others is
/// removed.
pub(super) fn write_each<T>(
    items: impl Iterator<Item = T>,
    out: &mut Vec<u8>,
    mut write: impl FnMut(T, &mut Vec<u8>) -> bool,
) {
    let mut is_first = true;
    for item in items {
        let start = out.len();
        if !is_first {
            out.push(b',');
        }
        match write(item, out) {
            true => is_first = false,
            false => out.truncate(start),
        }
    }
}

fn is_port(name: &str) -> bool {
    name.split('_').any(|word| matches!(word, "port" | "ports"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(text: &str) -> String {
        let mut out = Vec::new();
        write_public("", Raw::parse(text.as_bytes()).unwrap(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn keys_files_addresses_and_unknown_text_are_private() {
        let info = r#"{"api_key":"K","model_path":"/m","host":"10.0.0.1","port":30000,
            "nccl_port":null,"ssl_keyfile":"/etc/k","launch_command":"python --api-key K",
            "later":{"secret":"S","depth":1.50},"lists":["a",1,{"tls":"T"}],"is_on":true}"#;
        assert_eq!(
            public(info),
            concat!(
                r#"{"model_path":"/m","nccl_port":null,"later":{"depth":1.50},"lists":[1,{}],"#,
                r#""is_on":true}"#
            )
        );
    }
}
