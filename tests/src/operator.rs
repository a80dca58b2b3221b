//! An operator with an account and its users, as `nsc` makes them: JWTs signed with NKeys. A server that trusts the
//! operator admits whoever shows a user's JWT and proves that it has the user's seed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use data_encoding::BASE32_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha512_256};

/// Keys of an operator, its system account and one account.
pub struct Operator {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

/// A user's secrets.
#[derive(Debug, Clone)]
pub struct User {
    /// The JWT.
    pub jwt: String,
    /// The seed.
    pub seed: String,
}

impl Operator {
    /// New keys.
    pub fn new() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            account: KeyPair::new_account(),
        }
    }

    /// What a server is configured with that trusts this operator.
    ///
    /// # Errors
    /// A JWT cannot be signed.
    pub fn server_config(&self) -> Result<String> {
        let system = self.system.public_key();
        let operator = json!({ "type": "operator", "version": 2, "system_account": system });
        let operator = jwt(&self.operator, &self.operator, "operator", operator)?;
        let accounts = [(&self.system, "SYS"), (&self.account, "APP")];
        let mut preload = String::new();
        for (keys, name) in accounts {
            let claims = account_claims(name == "APP");
            let signed = jwt(&self.operator, keys, name, claims)?;
            preload += &format!("{}: {signed:?}\n", keys.public_key());
        }
        Ok(format!(
            "operator: {operator:?}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload: {{\n{preload}}}\n"
        ))
    }

    /// A user of the account.
    ///
    /// # Errors
    /// Its JWT cannot be signed.
    pub fn user(&self) -> Result<User> {
        self.user_for(None)
    }

    /// A user whose JWT expires after this.
    ///
    /// # Errors
    /// Its JWT cannot be signed.
    pub fn user_for(&self, valid: Option<Duration>) -> Result<User> {
        let keys = KeyPair::new_user();
        let claims = json!({
            "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1,
        });
        Ok(User {
            jwt: expiring_jwt(&self.account, &keys, "node", claims, valid)?,
            seed: keys.seed()?,
        })
    }
}

impl Default for Operator {
    fn default() -> Self {
        Self::new()
    }
}

impl User {
    /// The text of a credentials file.
    pub fn creds(&self) -> String {
        let (jwt, seed) = (&self.jwt, &self.seed);
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

/// No limits; JetStream as much as there is, where it is wanted.
fn account_claims(jetstream: bool) -> Value {
    let storage = if jetstream { -1 } else { 0 };
    json!({
        "type": "account",
        "version": 2,
        "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": storage,
            "consumer": storage,
        },
        "default_permissions": { "pub": {}, "sub": {} },
    })
}

/// A JWT that does not expire.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value) -> Result<String> {
    expiring_jwt(issuer, subject, name, nats, None)
}

/// base64url of header, claims and signature, between dots.
fn expiring_jwt(
    issuer: &KeyPair,
    subject: &KeyPair,
    name: &str,
    nats: Value,
    valid: Option<Duration>,
) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut claims = json!({
        "iat": now, "iss": issuer.public_key(), "sub": subject.public_key(), "name": name, "nats": nats,
    });
    if let Some(valid) = valid {
        claims["exp"] = (now + valid.as_secs()).into();
    }
    let id = BASE32_NOPAD.encode(&Sha512_256::digest(claims.to_string()));
    claims["jti"] = Value::String(id);
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let signed = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes())?);
    Ok(format!("{signed}.{signature}"))
}
