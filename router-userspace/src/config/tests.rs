//! Command lines, right and wrong.

use clap::CommandFactory;

use super::*;

fn settings(line: &[&str]) -> Result<Settings> {
    let cli = Cli::try_parse_from([&["pd-router", "gateway"], line].concat())?;
    let Command::Gateway(flags) = cli.command else { panic!("another command") };
    flags.settings()
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn durations_carry_their_unit() {
    assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
    assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
    assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
    for wrong in ["5", "", "s", "-1s", "0s", "1e99h", "5 s"] {
        assert!(duration(wrong).is_err(), "{wrong}");
    }
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

#[test]
fn a_wrong_flag_is_named() {
    for (line, name) in [
        (&[][..], "--manifests"),
        (&["--pd-disaggregation"], "--prefill"),
        (&["--manifests", "d", "--policy", "best"], "--policy"),
        (&["--manifests", "d", "--max-attempts", "0"], "--max-attempts"),
        (&["--manifests", "d", "--queue-timeout", "5"], "--queue-timeout"),
        (&["--manifests", "d", "--engine-api-key-file", "/nowhere"], "--engine-api-key-file"),
        (&["--manifests", "d", "--agent", "somewhere"], "--agent"),
        (&["--manifests", "d", "--agent", "10.0.0.1:9911="], "--agent"),
        (&["--manifests", "d", "--decode", "http://x"], "--decode"),
        (&["--kubernetes", "--manifests", "d"], "--manifests"),
        (&["--kubernetes", "--gateway-service", "x"], "--gateway-service"),
        (&["--manifests", "d", "--gateway-service", "x/y"], "--kubernetes"),
    ] {
        let error = format!("{:#}", settings(line).unwrap_err());
        assert!(error.contains(name), "{line:?}: {error}");
    }
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
    let both = agent("--manifests d --token-file t --without-token").unwrap_err();
    assert!(both.contains("--without-token"), "{both}");
}

#[test]
fn targets_are_for_the_policy_that_predicts() {
    let settings = |line: &str| {
        let line = format!("--manifests . {line}");
        settings(&line.split_whitespace().collect::<Vec<_>>())
    };
    let told = settings("--slo-ttft 2s").unwrap().aim.targets.unwrap();
    assert_eq!((told.ttft_ms, told.itl_ms), (2000.0, f32::INFINITY));
    assert_eq!(settings("").unwrap().aim.targets, None);
    let error = settings("--policy least_load --slo-itl 50ms").unwrap_err().to_string();
    assert!(error.contains("--slo-itl") && error.contains("predicted"), "{error}");
}
