//! The pod that a process belongs to, from the names of the cgroups that the kubelet makes.

/// The pod UID in a process's `/proc/PID/cgroup`, for any cgroup version, driver and runtime.
pub(in crate::agent) fn pod_of(text: &str) -> Option<String> {
    // Format (cgroups(7)): number:controllers:path.
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    // The innermost pod: a kubelet may itself run in a pod (kind, nested clusters).
    paths.filter_map(|path| path.rsplit(['/', ':']).find_map(uid)).next()
}

/// `pod<uid>` (cgroupfs driver) or `kubepods-<class>-pod<uid with underscores>.slice` (systemd).
fn uid(component: &str) -> Option<String> {
    let name = component.strip_suffix(".slice").unwrap_or(component);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.rsplit_once("-pod").filter(|(before, _)| before.contains("kubepods"))?.1,
    };
    let uid = uid.replace('_', "-");
    (is_uuid(&uid) || is_hash(&uid)).then_some(uid)
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths = groups.iter().map(|group| group.len());
    lengths.eq([8, 4, 4, 4, 12]) && groups.iter().all(|group| is_hexadecimal(group))
}

/// A static pod's UID on its node is a hash of its manifest.
fn is_hash(text: &str) -> bool {
    text.len() == 32 && is_hexadecimal(text)
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "7b3a1d52-9c0e-4f4e-8a56-0d9f2b6c1e77";

    #[test]
    fn every_runtime_driver_and_version_names_the_pod() {
        let under = UID.replace('-', "_");
        let id = "a".repeat(64);
        let slice = format!("kubepods-burstable-pod{under}.slice");
        let systemd = format!("/kubepods.slice/kubepods-burstable.slice/{slice}");
        for path in [
            // cgroupfs driver: burstable, best effort, guaranteed.
            format!("/kubepods/burstable/pod{UID}/{id}"),
            format!("/kubepods/besteffort/pod{UID}/{id}"),
            format!("/kubepods/pod{UID}/{id}"),
            // systemd driver: containerd, CRI-O (its conmon too), docker.
            format!("{systemd}/cri-containerd-{id}.scope"),
            format!("{systemd}/crio-{id}.scope"),
            format!("{systemd}/crio-conmon-{id}.scope"),
            format!("{systemd}/docker-{id}.scope"),
            format!("/kubepods.slice/kubepods-pod{under}.slice/cri-containerd-{id}.scope"),
            // containerd without its systemd option under a systemd kubelet.
            format!("/system.slice/containerd.service/{slice}:cri-containerd:{id}"),
            // Below a container's own cgroup, and seen from another cgroup namespace.
            format!("{systemd}/cri-containerd-{id}.scope/init"),
            format!("/../../{slice}/cri-containerd-{id}.scope"),
            // A kubelet with a root of its own, as in kind.
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                 kubelet-kubepods-burstable-pod{under}.slice/cri-containerd-{id}.scope"
            ),
        ] {
            let v2 = format!("0::{path}\n");
            let v1 = format!("12:pids:{path}\n11:cpuset:{path}\n1:name=systemd:{path}\n");
            let hybrid = format!("12:pids:{path}\n1:name=systemd:/init.scope\n0::/init.scope\n");
            for text in [v2, v1, hybrid] {
                assert_eq!(pod_of(&text).as_deref(), Some(UID), "{text}");
            }
        }
    }

    #[test]
    fn static_pods_have_a_hash_and_other_cgroups_have_no_pod() {
        let hash = "0123456789abcdef0123456789abcdef";
        let text = format!("0::/kubepods.slice/kubepods-pod{hash}.slice/crio-1.scope");
        assert_eq!(pod_of(&text).as_deref(), Some(hash));
        for path in [
            "/",
            "/init.scope",
            "/system.slice/sshd.service",
            "/user.slice/user-0.slice/session-1.scope",
            "/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "/system.slice/podman.service",
            "/machine.slice/libpod-0123456789abcdef0123456789abcdef.scope",
            "/kubepods.slice",
            "/kubepods/burstable/podnot-a-uid/x",
        ] {
            assert_eq!(pod_of(&format!("0::{path}\n")), None, "{path}");
        }
    }

    #[test]
    fn the_innermost_pod_counts() {
        let inner = UID.replace('7', "8");
        let text = format!("0::/kubepods/pod{UID}/x/kubelet/kubepods/pod{inner}/y");
        assert_eq!(pod_of(&text), Some(inner));
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in ".{0,400}") {
            pod_of(&text);
        }
    }
}
