//! [`Identity`]: who a listener is to clients over TLS: the certificate and the key of a Secret.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::fleet::ObjectName;

/// What a Secret proves. Its key is shown nowhere.
#[derive(Clone)]
pub struct Identity {
    pub secret: ObjectName,
    /// What the Secret held, certificates and key: what is the same needs no second reading.
    pem: [Bytes; 2],
    /// Made by whoever reads Secrets, used by whoever speaks TLS; nothing here looks into it.
    signer: Arc<dyn Any + Send + Sync>,
}

impl Identity {
    pub fn new<T: Any + Send + Sync>(
        secret: ObjectName,
        pem: [Bytes; 2],
        signer: Arc<T>,
    ) -> Identity {
        Identity { secret, pem, signer }
    }

    /// Whether it was made of these bytes of this Secret.
    pub fn is_of(&self, secret: &ObjectName, pem: &[Bytes; 2]) -> bool {
        self.secret == *secret && self.pem == *pem
    }

    /// What it was made with, where that is a `T`.
    pub fn signer<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.signer).downcast().ok()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("secret", &self.secret).finish_non_exhaustive()
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Identity", 1)?;
        fields.serialize_field("secret", &self.secret)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_nowhere() {
        let secret = ObjectName { namespace: "n".into(), name: "s".into() };
        let pem = [Bytes::from_static(b"certificate"), Bytes::from_static(b"key")];
        let identity = Identity::new(secret.clone(), pem.clone(), Arc::new(5_u32));
        let shown = format!("{identity:?} {}", serde_json::to_string(&identity).unwrap());
        assert!(shown.contains("n/s") && !shown.contains("key"), "{shown}");
        assert_eq!(identity.signer::<u32>().as_deref(), Some(&5));
        assert!(identity.signer::<u64>().is_none());
        assert!(identity.is_of(&secret, &pem));
        assert!(!identity.is_of(&secret, &[pem[0].clone(), Bytes::new()]));
    }
}
