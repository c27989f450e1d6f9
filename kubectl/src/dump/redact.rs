//! What a support bundle must not have: keys, tokens, passwords. Pure. Secrets are never read; this is for what people and programs put
//! elsewhere.

use serde_json::Value;

/// What stands in the place of what was removed.
pub const REDACTED: &str = "[redacted]";
/// Hexadecimal digits from which on a word may be a key. A cluster's id has 32 of them, a key 64.
const KEY_DIGITS_MIN: usize = 48;
/// Parts of names whose values are removed.
const SECRET_NAMES: [&str; 9] =
    ["password", "passwd", "secret", "token", "apikey", "api_key", "api-key", "credential", "authorization"];
/// Fields whose names have such a part and hold names of objects, not secrets.
const NAMES_OF_SECRETS: [&str; 9] = [
    "secretname",
    "clientsecretname",
    "secretref",
    "secretkeyref",
    "nodestagesecretref",
    "nodepublishsecretref",
    "imagepullsecrets",
    "automountserviceaccounttoken",
    "serviceaccounttoken",
];

/// Whether the value of a name is removed.
fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase();
    // csi.storage.k8s.io/node-stage-secret-name and such name objects.
    let is_reference = NAMES_OF_SECRETS.contains(&name.as_str())
        || name.ends_with("-secret-name")
        || name.ends_with("-secret-namespace");
    !is_reference && SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// An object without what it must not have.
pub fn object(mut value: Value) -> Value {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            // A copy of the object, with whatever it had.
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    walk(&mut value);
    value
}

fn walk(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // An environment variable: the name is beside the value.
            let named = map.get("name").and_then(Value::as_str).is_some_and(is_secret_name);
            if named && let Some(value) = map.get_mut("value") {
                *value = Value::String(REDACTED.to_owned());
            }
            for (name, value) in map.iter_mut() {
                if is_secret_name(name) && (value.is_string() || value.is_number()) {
                    *value = Value::String(REDACTED.to_owned());
                } else {
                    walk(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(walk),
        Value::String(text) => *text = self::text(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text without what looks like a key, a token, or the password of an address.
pub fn text(text: &str) -> String {
    let mut found = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        found.push_str(&line_of(line));
    }
    found
}

fn line_of(line: &str) -> String {
    let line = bearer(line);
    let mut found = String::with_capacity(line.len());
    let mut word = String::new();
    for letter in line.chars() {
        if letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.') {
            word.push(letter);
        } else {
            found.push_str(&word_of(&word));
            word.clear();
            found.push(letter);
        }
    }
    found.push_str(&word_of(&word));
    assigned(&userinfo(&found))
}

/// A word that is a key in hexadecimal digits, or a JSON web token.
fn word_of(word: &str) -> String {
    let is_key = word.len() >= KEY_DIGITS_MIN && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_token = word.starts_with("eyJ") && word.matches('.').count() == 2;
    if is_key || is_token { REDACTED.to_owned() } else { word.to_owned() }
}

/// `Bearer TOKEN` and `Basic TOKEN`.
fn bearer(line: &str) -> String {
    let mut line = line.to_owned();
    for scheme in ["Bearer ", "bearer ", "Basic "] {
        let mut from = 0;
        while let Some(at) = line[from..].find(scheme) {
            let start = from + at + scheme.len();
            let rest = &line[start..];
            let end = rest.find(|letter: char| letter.is_whitespace() || letter == '"').unwrap_or(rest.len());
            // A word of prose is no token.
            const TOKEN_MIN: usize = 16;
            if end >= TOKEN_MIN {
                line.replace_range(start..start + end, REDACTED);
            }
            from = start;
        }
    }
    line
}

/// `scheme://user:password@host`.
fn userinfo(line: &str) -> String {
    let mut line = line.to_owned();
    let mut from = 0;
    while let Some(at) = line[from..].find("://") {
        let start = from + at + 3;
        let rest = &line[start..];
        let end = rest
            .find(|letter: char| letter.is_whitespace() || matches!(letter, '/' | '"'))
            .unwrap_or(rest.len());
        if let Some(at) = rest[..end].rfind('@')
            && rest[..at].contains(':')
        {
            line.replace_range(start..start + at, REDACTED);
        }
        from = start;
    }
    line
}

/// `password=…`, `"token": "…"`, `secret: …`.
fn assigned(line: &str) -> String {
    let lower = line.to_lowercase();
    // Where lower case has another length the places don't match; such letters are in no name of a secret.
    if lower.len() != line.len() {
        return line.to_owned();
    }
    let mut cuts: Vec<(usize, usize)> = Vec::new();
    for part in SECRET_NAMES {
        for (at, _) in lower.match_indices(part) {
            let rest = &line[at + part.len()..];
            let tail = rest.trim_start_matches(['"', '\'']);
            let tail = tail.trim_start();
            let Some(tail) = tail.strip_prefix(['=', ':']) else { continue };
            let tail = tail.trim_start().trim_start_matches(['"', '\'']);
            let start = line.len() - tail.len();
            let end = tail
                .find(|letter: char| letter.is_whitespace() || matches!(letter, '"' | '\'' | ',' | '}' | '&'))
                .unwrap_or(tail.len());
            if end > 0 && !tail.starts_with(REDACTED) {
                cuts.push((start, start + end));
            }
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut found = line.to_owned();
    for (start, end) in cuts.into_iter().rev() {
        if end <= found.len() && found.is_char_boundary(start) && found.is_char_boundary(end) {
            found.replace_range(start..end, REDACTED);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn an_object_loses_its_secrets_and_nothing_else() {
        let before = json!({
            "metadata": {
                "name": "pod", "managedFields": [{ "x": 1 }],
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b" },
            },
            "spec": {
                "automountServiceAccountToken": false,
                "imagePullSecrets": [{ "name": "registry" }],
                "containers": [{
                    "env": [
                        { "name": "DB_PASSWORD", "value": "hunter2" }, { "name": "ATOLL_CLUSTER", "value": "7" },
                        { "name": "URL", "value": "postgres://me:hunter2@db/x" },
                        { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } },
                    ],
                    "args": [format!("--key={KEY}"), "--secret=hunter2"],
                }],
                "volumes": [{ "secret": { "secretName": "db-key", "items": [{ "key": "key", "path": "key" }] } }],
                "nodeStageSecretRef": { "name": "pvc-1", "namespace": "n" },
            },
            "parameters": { "csi.storage.k8s.io/node-stage-secret-name": "${pv.name}", "apiToken": "hunter2" },
        });
        let after = object(before);
        let text = after.to_string();
        for secret in ["hunter2", KEY, "managedFields", "last-applied"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        for kept in
            ["registry", "db-key", "${pv.name}", "pvc-1", "ATOLL_CLUSTER", "\"7\"", "\"a\":\"b\"", "@db/x"]
        {
            assert!(text.contains(kept), "{kept} isn't in {text}");
        }
        let env = &after["spec"]["containers"][0]["env"];
        assert_eq!((&env[0]["value"], &env[1]["value"]), (&json!(REDACTED), &json!("7")));
        assert_eq!(env[3]["valueFrom"]["secretKeyRef"]["name"], "s");
        assert_eq!(after["spec"]["automountServiceAccountToken"], false);
    }

    #[test]
    fn a_log_loses_keys_tokens_and_passwords() {
        for line in [
            format!("key {KEY} was read"),
            format!("{{\"message\":\"x\",\"key\":\"{KEY}\"}}"),
            "Authorization: Bearer abcdefghijklmnopqrstuvwxyz0123456789".to_owned(),
            "token eyJhbGciOi.eyJzdWIiOi.abc-def_1 is used".to_owned(),
            "password=abcdefghijklmnopqrstuvwxyz0123456789 next".to_owned(),
            "{\"token\": \"abcdefghijklmnopqrstuvwxyz0123456789\"}".to_owned(),
            "https://me:abcdefghijklmnopqrstuvwxyz0123456789@host/path".to_owned(),
        ] {
            let after = text(&line);
            assert!(after.contains(REDACTED), "{after}");
            assert!(
                !after.contains(KEY) && !after.contains("abcdefghij") && !after.contains("eyJ"),
                "{after}"
            );
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for line in [
            // A cluster's id and a volume handle are what a reader needs.
            "cluster 0123456789abcdef0123456789abcdef of v1/atoll-volumes/pvc-6dd2c04e-2f0c-4d8e-9b8a-3d1a53bd3c8e\n",
            "the Secret db-key doesn't exist\n",
            "Basic checks are done, Bearer of news\n",
            "https://kubernetes.default.svc:443/api\n",
            "Ä token-less line: ß\n",
            "",
        ] {
            assert_eq!(text(line), line);
        }
    }
}
