//! The command lines of the containers are ones that pd-router takes.

use clap::Parser;
use pd_router::config::{Cli, Command};
use pd_router::token::Guard;
use serde_json::Value;

use crate::rendering::{WAYS, kustomize};

/// Every container of a pod template, those that run first included.
fn containers(object: &Value) -> Vec<&Value> {
    let pod = &object["spec"]["template"]["spec"];
    let lists = ["initContainers", "containers"].into_iter();
    lists.filter_map(|list| pod[list].as_array()).flatten().collect()
}

/// The container's arguments, with its variables in place as Kubernetes would.
fn command_line(container: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let mut words = vec!["pd-router".to_owned()];
    words.extend(container["args"].as_array().expect("arguments").iter().map(text));
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = text(&variable["name"]);
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("spec.nodeName") => "node-1",
            Some("status.hostIP") => "192.0.2.7",
            other => panic!("{name} is from {other:?}"),
        };
        for word in &mut words {
            *word = word.replace(&format!("$({name})"), value);
        }
        if name == "NODE_NAME" {
            // What the program takes from its environment by itself.
            words.push(format!("--node-name={value}"));
        }
    }
    words
}

/// The file of the token that all share.
fn flags_token(line: &[String]) -> Option<std::path::PathBuf> {
    line.iter().find_map(|word| word.strip_prefix("--admin-token-file=")).map(Into::into)
}

#[test]
fn every_command_line_is_one_that_pd_router_takes() {
    for way in &WAYS {
        let objects = kustomize(way.folder);
        let lines: Vec<Vec<String>> =
            objects.values().flat_map(containers).map(command_line).collect();
        assert_eq!(lines.len(), 3, "{}: a gateway, an agent, its mounts", way.folder);
        for line in lines {
            assert!(!line.iter().any(|word| word.contains("$(")), "{line:?}");
            let cli = Cli::try_parse_from(&line).unwrap_or_else(|error| panic!("{error}"));
            match cli.command {
                Command::Gateway(flags) => {
                    let settings = flags.settings().expect("flags that fit together");
                    assert!(settings.source.kubernetes);
                    // Beyond loopback nothing but probes is answered without the token.
                    assert!(!settings.admin_listen.ip().is_loopback());
                    assert!(matches!(*settings.admin_guard, Guard::Token(_)));
                    assert_eq!(settings.agent_token_file, flags_token(&line));
                }
                Command::Agent(flags) if flags.prepare_node => assert!(flags.cgroup.is_some()),
                Command::Agent(flags) => {
                    assert!(
                        flags.kubernetes
                            && flags.token_file.is_some()
                            && !flags.allow_unauthenticated
                    );
                    assert!(flags.cgroup.is_some(), "a container's own cgroup is no use");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
