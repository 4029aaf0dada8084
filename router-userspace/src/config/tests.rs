//! Command lines, right and wrong.

use clap::CommandFactory;

use super::*;

fn settings(line: &[&str]) -> Result<GatewaySettings> {
    let cli = Cli::try_parse_from([&["pd-router", "gateway"], line].concat())?;
    let Command::Gateway(flags) = cli.command else { panic!("another command") };
    flags.settings()
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn flags_of_sglang_router_are_read() {
    let line = "--pd-disaggregation --prefill http://a:30000 8998 --prefill http://b:30000 \
                --decode http://c:30000 --decode http://d:30000 --host 127.0.0.1 --port 8001";
    let settings = settings(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
    let prefills = [vec!["http://a:30000", "8998"], vec!["http://b:30000"]];
    assert_eq!(settings.source.prefills(), prefills);
    assert_eq!(settings.source.decode, ["http://c:30000", "http://d:30000"]);
    assert_eq!(settings.listen_address, IpAddr::V4(Ipv4Addr::LOCALHOST));
}

/// Values at and beyond the ends of what a number or a duration can be.
pub(crate) const EXTREME_VALUES: [&str; 24] = [
    "",
    "0",
    "1",
    "-1",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "2305843009213693951",
    "2305843009213693952",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "NaN",
    "inf",
    "0s",
    "1ms",
    "0.000001ms",
    "576h",
    "8760h",
    "5000000000000000h",
    "1e308h",
    "\u{fffd}",
];

/// The flags of a command that take a value.
pub(crate) fn flags_with_values(command: &str) -> Vec<String> {
    let cli = Cli::command();
    let command = cli.find_subcommand(command).expect("the command exists");
    let takes_value = |flag: &&clap::Arg| flag.get_action().takes_values();
    let long = |flag: &clap::Arg| flag.get_long().map(|name| format!("--{name}"));
    command.get_arguments().filter(takes_value).filter_map(long).collect()
}

#[test]
fn no_value_of_a_flag_of_the_gateway_panics_and_a_wrong_one_is_named() {
    for flag in flags_with_values("gateway") {
        for value in EXTREME_VALUES {
            let value = format!("{flag}={value}");
            match settings(&["--manifests", "d", &value]) {
                Err(error) => assert!(format!("{error:#}").contains(&flag), "{value}: {error:#}"),
                Ok(settings) => {
                    let far = std::time::Instant::now().checked_add(settings.timeouts.send_timeout);
                    assert!(far.is_some(), "{value}");
                }
            }
        }
    }
}

#[test]
fn no_value_of_a_flag_of_the_agent_panics_and_a_wrong_one_is_named() {
    for flag in flags_with_values("agent") {
        for value in EXTREME_VALUES {
            let value = format!("{flag}={value}");
            let line = ["pd-router", "agent", "--manifests", "d", &value];
            if let Err(error) = Cli::try_parse_from(line) {
                assert!(error.to_string().contains(&flag), "{value}: {error}");
            }
        }
    }
}

#[test]
fn a_wrong_flag_is_named() {
    for (line, name) in [
        (&[][..], "--manifests"),
        (&["--pd-disaggregation"], "--prefill"),
        (&["--manifests", "d", "--policy", "best"], "--policy"),
        (&["--manifests", "d", "--max-attempts", "0"], "--max-attempts"),
        (&["--manifests", "d", "--queue-timeout", "5"], "--queue-timeout"),
        (&["--manifests", "d", "--max-body", "0"], "--max-body is 0: it must be between 1 and"),
        (&["--manifests", "d", "--admin-token-file", "/nope"], "--admin-token-file /nope"),
        (&["--manifests", "d", "--agent-token-file", "/nope"], "--agent-token-file /nope"),
        (&["--manifests", "d", "--admin-listen", "9901"], "--admin-listen"),
        (&["--manifests", "d", "--peer", "127.0.0.1:9901"], "--admin-token-file"),
        (&["--manifests", "d", "--engine-api-key-file", "/nowhere"], "--engine-api-key-file"),
        (&["--manifests", "d", "--agent", "somewhere"], "--agent"),
        (&["--manifests", "d", "--agent", "10.0.0.1:9911="], "--agent"),
        (&["--manifests", "d", "--decode", "http://x"], "--decode"),
        (&["--manifests", "d", "--allow-fields", "a,bootstrap_room"], "--allow-fields"),
        (&["--kubernetes", "--manifests", "d"], "--manifests"),
        (&["--kubernetes", "--gateway-service", "x"], "--gateway-service"),
        (&["--manifests", "d", "--gateway-service", "x/y"], "--kubernetes"),
    ] {
        let error = format!("{:#}", settings(line).unwrap_err());
        assert!(error.contains(name), "{line:?}: {error}");
    }
}

#[test]
fn a_token_file_may_be_missing_in_a_cluster_only() {
    let secret = ["--admin-token-file", "/nope", "--agent-token-file", "/nope"];
    settings(&[&["--kubernetes"][..], &secret].concat()).unwrap();
    settings(&[&["--manifests", "d"][..], &secret].concat()).unwrap_err();
}

#[test]
fn only_the_policies_that_the_gateway_has_are_named() {
    let error = settings(&["--manifests", "d", "--policy", "least-load"]).unwrap_err().to_string();
    assert!(error.contains("least_load") && error.contains("predicted"), "{error}");
    assert!(!error.contains("cache_aware") && !error.contains("reported"), "{error}");
}

#[test]
fn the_help_names_the_policies_that_the_gateway_has() {
    let mut seen = false;
    every_flag(|command, flag| {
        if command != "gateway" || flag.get_long() != Some("policy") {
            return;
        }
        seen = true;
        let help = help_of(flag);
        for policy in Policy::ALL {
            let name = policy.as_str();
            assert_eq!(help.contains(name), name.parse::<PolicyName>().is_ok(), "{name}: {help}");
        }
    });
    assert!(seen);
}

#[test]
fn sizes_and_addresses_are_read_as_people_write_them() {
    let line = ["--manifests", "d", "--max-body", "32Mi", "--admin-listen", "localhost:9901"];
    let settings = settings(&line).unwrap();
    assert_eq!(settings.limits.max_body, 32 << 20);
    assert_eq!(settings.admin_listen, SocketAddr::from((Ipv4Addr::LOCALHOST, 9901)));
}

#[test]
fn an_agent_in_a_cluster_needs_its_nodes_name() {
    let agent = |line: &str| {
        let words = ["pd-router", "agent"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map_err(|error| error.to_string())
    };
    assert!(agent("--kubernetes --node-name n").is_ok());
    let missing = agent("--kubernetes").unwrap_err();
    assert!(missing.contains("--node-name"), "{missing}");
    let both = agent("--kubernetes --node-name n --manifests d").unwrap_err();
    assert!(both.contains("--manifests"), "{both}");
    assert!(agent("").unwrap_err().contains("--manifests"));
    assert!(agent("--prepare-node").unwrap_err().contains("--cgroup"));
    assert!(agent("--prepare-node --cgroup c").is_ok());
    assert!(agent("--cleanup").is_ok());
    let both = agent("--manifests d --token-file t --allow-unauthenticated").unwrap_err();
    assert!(both.contains("--allow-unauthenticated"), "{both}");
}

#[test]
fn targets_are_for_the_policy_that_predicts() {
    let settings = |line: &str| {
        let line = format!("--manifests . {line}");
        settings(&line.split_whitespace().collect::<Vec<_>>())
    };
    let targets = settings("--slo-ttft 2s").unwrap().aim.targets.unwrap();
    assert_eq!((targets.ttft_ms, targets.itl_ms), (2000.0, f32::INFINITY));
    assert_eq!(settings("").unwrap().aim.targets, None);
    let error = settings("--policy least_load --slo-itl 50ms").unwrap_err().to_string();
    assert!(error.contains("--slo-itl") && error.contains("predicted"), "{error}");
}

/// Calls `visit` with every flag of every command, and with the command's name.
fn every_flag(mut visit: impl FnMut(&str, &clap::Arg)) {
    let mut cli = Cli::command();
    cli.build();
    for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        for flag in command.get_arguments().filter(|flag| flag.get_id() != "help") {
            visit(command.get_name(), flag);
        }
    }
}

fn help_of(flag: &clap::Arg) -> String {
    flag.get_help().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn every_help_text_is_a_sentence_under_a_heading() {
    every_flag(|command, flag| {
        let (name, help) = (flag.get_long().unwrap_or_default(), help_of(flag));
        assert!(help.starts_with(char::is_uppercase), "{command} --{name}: {help:?}");
        assert!(help.split_whitespace().count() >= 3, "{command} --{name}: {help:?}");
        let heading = flag.get_help_heading().is_some()
            || ["check", "completions", "crds"].contains(&command);
        assert!(heading, "{command} --{name} stands under no heading");
    });
}

/// One row of a table: the flag with its values, its default, and its help.
fn row(flag: &clap::Arg) -> String {
    let mut name = match flag.get_long() {
        Some(long) => format!("--{long}"),
        None => format!("<{}>", flag.get_id().as_str().to_uppercase()),
    };
    let choices = flag.get_possible_values();
    let takes_value = flag.get_action().takes_values();
    if takes_value && choices.is_empty() {
        let required = flag.get_num_args().map_or(1, |range| range.min_values());
        for (position, value) in flag.get_value_names().unwrap_or_default().iter().enumerate() {
            match position < required {
                true => name.push_str(&format!(" <{value}>")),
                false => name.push_str(&format!(" [{value}]")),
            }
        }
    }
    let mut text = help_of(flag);
    text.push_str(if text.ends_with('.') { "" } else { "." });
    if takes_value && !choices.is_empty() {
        let choices = choices.iter().map(|choice| {
            let help = choice.get_help().map(|help| format!(" ({help})")).unwrap_or_default();
            format!("`{}`{help}", choice.get_name())
        });
        text.push_str(&format!(" Values: {}.", choices.collect::<Vec<_>>().join(", ")));
    }
    if let Some(variable) = flag.get_env() {
        text.push_str(&format!(" Environment variable: `{}`.", variable.display()));
    }
    let defaults = flag.get_default_values().iter().map(|value| value.to_string_lossy());
    let default = defaults.collect::<Vec<_>>().join(",");
    let default = match takes_value && !default.is_empty() {
        true => format!("`{default}`"),
        false => String::new(),
    };
    format!("| `{name}` | {default} | {text} |\n").replace("|  |", "| |")
}

/// The page of all flags, as `--help` prints them.
fn flags_page() -> String {
    let mut page = "# Flags\n\nEvery flag of every command, as `--help` prints it. A test keeps this page and `--help` the \
                    same;\n`UPDATE_GOLDEN=1 cargo test -p pd-router --lib the_flags_page` rewrites it. Durations \
                    carry a unit: `300s`,\n`5m`, `100ms`. Each flag can be given as an environment variable as well, but for \
                    `--port`: `--max-body` as\n`PD_ROUTER_MAX_BODY`. A flag counts before its variable.\n"
        .to_owned();
    let (mut command, mut heading) = (String::new(), String::new());
    let mut common: Vec<String> = Vec::new();
    every_flag(|of, flag| {
        if flag.is_global_set() {
            let row = row(flag);
            if !common.contains(&row) {
                common.push(row);
            }
            return;
        }
        let under = flag.get_help_heading().unwrap_or("Output");
        if command != of {
            page.push_str(&format!("\n## `pd-router {of}`\n"));
            heading.clear();
        }
        if command != of || heading != under {
            page.push_str(&format!(
                "\n### {under}\n\n| flag | default | meaning |\n|---|---|---|\n"
            ));
        }
        (command, heading) = (of.to_owned(), under.to_owned());
        page.push_str(&row(flag));
    });
    page.push_str("\n## Every command\n\n| flag | default | meaning |\n|---|---|---|\n");
    page + &common.concat()
}

#[test]
fn the_flags_page_is_what_help_prints() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/flags.md");
    let page = flags_page();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written, page, "docs/reference/flags.md is stale: run with UPDATE_GOLDEN=1");
}
