//! A load balancer in this process, in place of a cloud's and kube-proxy: an address for each Service
//! of type LoadBalancer, and connections from there to the port of the gateways that its spec names.
//!
//! It needs neither root nor a network namespace. `tests/cluster/proxied.rs` tests the kernel's rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::loopback::Loopback;

/// Balances until it is dropped.
pub struct Balancer {
    backends: Backends,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

/// The addresses of the gateways that are ready.
#[derive(Clone, Debug, Default)]
struct Backends(Arc<Mutex<Vec<IpAddr>>>);

/// A Service's address, and what listens there.
struct Place {
    address: Loopback,
    ports: BTreeMap<(u16, u16), JoinSet<()>>,
}

impl Balancer {
    /// Follows the Services of `namespace`.
    #[must_use]
    pub fn start(client: Client, namespace: &str) -> Balancer {
        let backends = Backends::default();
        let services: Api<Service> = Api::namespaced(client, namespace);
        let task = tokio::spawn(follow(services, backends.clone()));
        Balancer { backends, _task: tokio_util::task::AbortOnDropHandle::new(task) }
    }

    /// Adds a gateway that is ready.
    pub fn add(&self, gateway: IpAddr) {
        self.backends.lock().push(gateway);
    }

    /// Removes a gateway: new connections go to others, open ones stay.
    pub fn remove(&self, gateway: IpAddr) {
        self.backends.lock().retain(|known| *known != gateway);
    }
}

impl Backends {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<IpAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the first gateway that accepts one; each call begins with the next gateway.
    async fn connect(&self, port: u16) -> Option<TcpStream> {
        let backends = {
            let mut backends = self.lock();
            if !backends.is_empty() {
                backends.rotate_left(1);
            }
            backends.clone()
        };
        for backend in backends {
            if let Ok(stream) = TcpStream::connect(SocketAddr::new(backend, port)).await {
                return Some(stream);
            }
        }
        None
    }
}

async fn follow(services: Api<Service>, backends: Backends) {
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    let events = watcher(services.clone(), watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(service) | watcher::Event::InitApply(service)) => {
                place(&services, &mut places, &service, &backends).await;
            }
            Ok(watcher::Event::Delete(service)) => {
                places.remove(&service.metadata.name.unwrap_or_default());
            }
            // The API server is away: what is balanced stays balanced.
            Ok(_) | Err(_) => {}
        }
    }
}

async fn place(
    services: &Api<Service>,
    places: &mut BTreeMap<String, Place>,
    service: &Service,
    backends: &Backends,
) {
    let name = service.metadata.name.clone().unwrap_or_default();
    let Some(spec) = service.spec.as_ref() else { return };
    if spec.type_.as_deref() != Some("LoadBalancer") {
        places.remove(&name);
        return;
    }
    let place = places
        .entry(name.clone())
        .or_insert_with(|| Place { address: Loopback::claim(), ports: BTreeMap::new() });
    let number = |port: i32| u16::try_from(port).ok();
    let wanted: Vec<(u16, u16)> = (spec.ports.iter().flatten())
        .filter_map(|port| match port.target_port {
            Some(IntOrString::Int(target)) => Some((number(port.port)?, number(target)?)),
            _ => None,
        })
        .collect();
    place.ports.retain(|known, _| wanted.contains(known));
    for (port, target) in wanted {
        if place.ports.contains_key(&(port, target)) {
            continue;
        }
        let Ok(listener) = TcpListener::bind(place.address.port(port)).await else { continue };
        let mut task = JoinSet::new();
        task.spawn(listen(listener, target, backends.clone()));
        place.ports.insert((port, target), task);
    }
    let load_balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    if load_balancer.and_then(|balancer| balancer.ingress.as_ref()).is_none() {
        let ip = place.address.ip().to_string();
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}});
        let patch = Patch::Merge(&status);
        // It may have gone meanwhile.
        let _ = services.patch_status(&name, &PatchParams::default(), &patch).await;
    }
}

async fn listen(listener: TcpListener, target: u16, backends: Backends) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((mut client, _)) = accepted {
                let backends = backends.clone();
                connections.spawn(async move {
                    let Some(mut gateway) = backends.connect(target).await else { return };
                    // Its errors are those of the two ends.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut gateway).await;
                });
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
