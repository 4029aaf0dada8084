//! Gateways come, change and go; their Services follow.

use serde_json::json;

use super::*;

fn wanted(name: &str, ports: &[u16]) -> GatewayService {
    GatewayService {
        gateway: router_core::fleet::ObjectName { namespace: "n".into(), name: name.into() },
        uid: format!("{name}-0000-1111"),
        ports: ports.to_vec(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

fn template(type_: &'static str) -> ServiceTemplate {
    let selector = [("app".to_owned(), "gateway".to_owned())].into();
    let annotations = [("example.com/size".to_owned(), "small".to_owned())].into();
    ServiceTemplate { namespace: "own".into(), type_, annotations, selector }
}

fn made(wanted: &[GatewayService]) -> Vec<Service> {
    let actions = plan(wanted, &[], &template("LoadBalancer"));
    let created = actions.into_iter().map(|step| match step {
        ServiceAction::Create(service) => *service,
        other => panic!("{other:?}"),
    });
    created.collect()
}

fn all_targets(services: &[Service]) -> Vec<(u16, u16)> {
    services.iter().flat_map(targets).collect()
}

#[test]
fn two_gateways_on_one_port_have_two_services_and_two_ports_of_ours() {
    let services = made(&[wanted("a", &[80, 8080]), wanted("b", &[8080])]);
    assert_eq!(services.len(), 2);
    assert_ne!(services[0].metadata.name, services[1].metadata.name);
    let mut ports: Vec<u16> = all_targets(&services).into_iter().map(|(_, port)| port).collect();
    assert!(ports.iter().all(|port| TARGET_PORTS.contains(port)), "{ports:?}");
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 3);
    let [a, _] = &services[..] else { panic!("{services:?}") };
    assert_eq!(gateway_uid(a), Some("a-0000-1111"));
    assert_eq!(a.metadata.namespace.as_deref(), Some("own"));
    assert_eq!(a.metadata.annotations.as_ref().unwrap()[GATEWAY_ANNOTATION], "n/a");
    assert_eq!(a.metadata.labels.as_ref().unwrap()[GATEWAY_NAME_LABEL], "a");
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    let needed = [wanted("a", &[80]), wanted("b", &[80])];
    let mut services = made(&needed);
    // What a cluster and others add is theirs.
    let spec = services[0].spec.as_mut().unwrap();
    spec.cluster_ip = Some("10.96.0.9".to_owned());
    spec.ports.as_mut().unwrap()[0].node_port = Some(30_001);
    let annotations = services[0].metadata.annotations.as_mut().unwrap();
    annotations.insert("cloud.example.com/id".to_owned(), "lb-1".to_owned());
    assert_eq!(plan(&needed, &services, &template("LoadBalancer")), []);
}

#[test]
fn a_port_that_stays_keeps_its_target_when_others_come_and_go() {
    let mut services = made(&[wanted("a", &[80, 443])]);
    services[0].spec.as_mut().unwrap().ports.as_mut().unwrap()[0].node_port = Some(30_001);
    let before = all_targets(&services);
    let actions = plan(&[wanted("a", &[80, 81])], &services, &template("LoadBalancer"));
    let [ServiceAction::Replace(changed)] = &actions[..] else { panic!("{actions:?}") };
    let after: Vec<(u16, u16)> = targets(changed).collect();
    assert_eq!(after[0], before[0]);
    assert_eq!(after[1].0, 81);
    assert_ne!(after[1].1, before[1].1, "a port that was given back is not another's at once");
    assert_eq!(changed.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].node_port, Some(30_001));
}

#[test]
fn a_service_whose_gateway_is_gone_goes_and_a_second_one_too() {
    let services = made(&[wanted("a", &[80]), wanted("b", &[80])]);
    let mut second = services[0].clone();
    second.metadata.name = Some("zz".to_owned());
    let existing = [services[0].clone(), second.clone(), services[1].clone()];
    let actions = plan(&[wanted("a", &[80])], &existing, &template("LoadBalancer"));
    let gone = |service: &Service| ServiceAction::Delete(Box::new(service.clone()));
    assert_eq!(actions.len(), 2, "{actions:?}");
    assert!(
        actions.contains(&gone(&second)) && actions.contains(&gone(&services[1])),
        "{actions:?}"
    );
}

#[test]
fn of_two_services_that_lead_to_one_port_the_younger_one_gets_another() {
    let needed = [wanted("a", &[80]), wanted("b", &[80])];
    let mut services = made(&needed);
    let target = all_targets(&services)[0].1;
    for (service, day) in services.iter_mut().zip([2, 1]) {
        let ports = service.spec.as_mut().unwrap().ports.as_mut().unwrap();
        ports[0].target_port = Some(IntOrString::Int(target.into()));
        let created = json!(format!("2026-01-0{day}T00:00:00Z"));
        service.metadata.creation_timestamp = serde_json::from_value(created).unwrap();
    }
    let actions = plan(&needed, &services, &template("LoadBalancer"));
    let [ServiceAction::Replace(changed)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(gateway_uid(changed), Some("a-0000-1111"), "b is older and keeps its port");
    assert_ne!(targets(changed).next().unwrap().1, target);
}

#[test]
fn a_gateway_without_a_port_makes_none_and_keeps_what_it_has() {
    assert_eq!(plan(&[wanted("a", &[])], &[], &template("LoadBalancer")), []);
    let services = made(&[wanted("a", &[80])]);
    assert_eq!(plan(&[wanted("a", &[])], &services, &template("LoadBalancer")), []);
}

#[test]
fn what_the_infrastructure_of_a_gateway_asks_for_is_on_its_service() {
    let mut needed = wanted("a", &[80]);
    needed.annotations.insert("example.com/class".to_owned(), "internal".to_owned());
    needed.labels.insert(GATEWAY_UID_LABEL.to_owned(), "stolen".to_owned());
    let services = made(std::slice::from_ref(&needed));
    assert_eq!(services[0].metadata.annotations.as_ref().unwrap()["example.com/class"], "internal");
    assert_eq!(gateway_uid(&services[0]), Some(needed.uid.as_str()), "our labels are ours");
    let old = made(&[wanted("a", &[80])]);
    assert_eq!(old[0].metadata.annotations.as_ref().unwrap()["example.com/size"], "small");
    let actions = plan(&[needed], &old, &template("LoadBalancer"));
    assert!(matches!(&actions[..], [ServiceAction::Replace(_)]), "{actions:?}");
}

#[test]
fn the_type_follows_the_flag() {
    let needed = [wanted("a", &[80])];
    let services = made(&needed);
    assert_eq!(
        services[0].spec.as_ref().unwrap().external_traffic_policy.as_deref(),
        Some("Local")
    );
    let actions = plan(&needed, &services, &template("ClusterIP"));
    let [ServiceAction::Replace(changed)] = &actions[..] else { panic!("{actions:?}") };
    let spec = changed.spec.as_ref().unwrap();
    assert_eq!(
        (spec.type_.as_deref(), spec.external_traffic_policy.as_deref()),
        (Some("ClusterIP"), None)
    );
}

#[test]
fn a_name_is_one_that_a_service_may_have() {
    let mut long = wanted(&"x.y".repeat(30), &[80]);
    long.uid = "12345678-9abc-def0-1234-56789abcdef0".to_owned();
    let name = made(&[long])[0].metadata.name.clone().unwrap();
    assert!(name.len() <= MAX_NAME && name.starts_with("gateway-x-yx"), "{name}");
    assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{name}");
}
