//! An API server in memory, as far as the operator uses one: objects with versions, uids, finalizers, status subresources,
//! merge patches, server-side apply and preconditions. Faults come in at its door ([`Fault`]).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::http::{Method, Request, Response, StatusCode};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::fault::{Door, Outcome};

/// When everything happens.
const NOW: &str = "2026-01-01T00:00:00Z";
/// Kinds of objects whose generation counts changes of the spec.
const WITH_GENERATION: [&str; 2] = ["filesystemclusters", "statefulsets"];

/// Which object: its kind in the plural, its namespace (empty: none), its name.
pub type Key = (String, String, String);

/// Objects.
#[derive(Default)]
pub struct State {
    objects: BTreeMap<Key, Value>,
    /// The version of the last change.
    version: u64,
    /// How many objects there were of each name.
    incarnations: BTreeMap<Key, u32>,
    /// What is done to each object that is created or changed.
    pub webhook: Option<fn(&str, &mut Value)>,
    /// What was applied last, by which a later one knows what is no longer asked for.
    applied: BTreeMap<Key, Value>,
}

/// The server.
#[derive(Clone, Default)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    /// Through which all requests come.
    pub door: Door,
}

/// A refusal.
#[derive(Debug)]
pub struct Refusal(pub u16, pub &'static str, pub String);

impl ApiServer {
    /// A client whose requests come through the door.
    pub fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.serve(request).await) }
        });
        Client::new(service, "default")
    }

    /// Everything, for a look or a change that isn't the operator's.
    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock())
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect_bytes().await.expect("a body in memory");
        let content =
            if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).expect("JSON") };
        let kind =
            parts.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let asked = Asked::parse(&parts.method, parts.uri.path(), kind, content);
        let state = Arc::clone(&self.state);
        let answer = if matches!(asked.verb, Verb::Get | Verb::List) {
            self.door.read(move || state.lock().answer(asked)).await
        } else {
            self.door.write(move || state.lock().answer(asked)).await
        };
        match answer {
            Outcome::Done(Ok(found)) => respond(200, &found),
            Outcome::Done(Err(Refusal(code, reason, message))) => refuse(code, reason, &message),
            Outcome::Refused(code) => refuse(code, "Injected", "a fault"),
        }
    }
}

fn respond(code: u16, content: &Value) -> Response<Body> {
    let body = Body::from(serde_json::to_vec(content).expect("serialises"));
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).expect("a code");
    response
}

fn refuse(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    respond(code, &status)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Get,
    List,
    Create,
    Replace,
    Merge,
    Apply,
    Delete,
}

/// A request.
#[derive(Debug)]
struct Asked {
    verb: Verb,
    key: Key,
    of_status: bool,
    content: Value,
}

impl Asked {
    fn parse(method: &Method, path: &str, kind: &str, content: Value) -> Asked {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        // api/v1/…, apis/group/version/…
        let parts = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
        let (namespace, rest) = match parts {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let named = rest.get(1).copied().or_else(|| content["metadata"]["name"].as_str()).unwrap_or_default();
        let verb = match (method.as_str(), rest.len() > 1) {
            ("GET", true) => Verb::Get,
            ("GET", false) => Verb::List,
            ("POST", _) => Verb::Create,
            ("PUT", _) => Verb::Replace,
            ("PATCH", _) if kind.contains("apply-patch") => Verb::Apply,
            ("PATCH", _) => Verb::Merge,
            ("DELETE", true) => Verb::Delete,
            other => panic!("{other:?} {path}"),
        };
        let key = (rest[0].to_owned(), namespace.to_owned(), named.to_owned());
        Asked { verb, key, of_status: rest.get(2) == Some(&"status"), content }
    }
}

impl State {
    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Objects of a kind, by name.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        self.objects.iter().filter(|(key, _)| key.0 == plural).map(|(_, found)| found.clone()).collect()
    }

    /// All objects.
    pub fn objects(&self) -> &BTreeMap<Key, Value> {
        &self.objects
    }

    /// One object.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(plural.to_owned(), namespace.to_owned(), name.to_owned()))
    }

    /// Makes an object.
    pub fn create(&mut self, plural: &str, mut object: Value) -> Result<Value, Refusal> {
        let text = |part: &str| object["metadata"][part].as_str().unwrap_or_default().to_owned();
        let key = (plural.to_owned(), text("namespace"), text("name"));
        if self.objects.contains_key(&key) {
            return Err(Refusal(409, "AlreadyExists", format!("{key:?} exists")));
        }
        if plural == "secrets" {
            let mut secret: Secret = serde_json::from_value(object).expect("a Secret");
            let texts = secret.string_data.take().unwrap_or_default();
            let bytes = texts.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes())));
            secret.data.get_or_insert_default().extend(bytes);
            object = serde_json::to_value(secret).expect("serialises");
        }
        let count = self.incarnations.entry(key.clone()).or_default();
        *count += 1;
        let uid = format!("{}/{}#{count}", key.0, key.2);
        let meta = &mut object["metadata"];
        (meta["uid"], meta["creationTimestamp"]) = (json!(uid), json!(NOW));
        if WITH_GENERATION.contains(&plural) {
            meta["generation"] = json!(1);
        }
        if let Some(webhook) = self.webhook {
            webhook(plural, &mut object);
        }
        self.put(key, object)
    }

    /// Changes an object as its owner would.
    pub fn change(&mut self, plural: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut object = self.objects.get(&key).unwrap_or_else(|| panic!("no {key:?}")).clone();
        change(&mut object);
        self.update(key, object, false).expect("a valid change");
    }

    /// Deletes an object, or marks it if something keeps it.
    pub fn delete(&mut self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.delete_with(key, &Value::Null).expect("a valid deletion");
    }

    fn answer(&mut self, asked: Asked) -> Result<Value, Refusal> {
        let Asked { verb, key, of_status, content } = asked;
        let missing = || Refusal(404, "NotFound", format!("{key:?} not found"));
        if key.0 == "events" {
            // What is said changes nothing.
            let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": [] });
            return Ok(if verb == Verb::List { list } else { content });
        }
        match verb {
            Verb::Get => self.objects.get(&key).cloned().ok_or_else(missing),
            Verb::List => panic!("the operator lists nothing but Events"),
            Verb::Create => {
                let mut object = content;
                object["metadata"]["namespace"] = json!(key.1);
                self.create(&key.0, object)
            }
            Verb::Apply => self.apply(key, content),
            Verb::Delete => self.delete_with(key, &content),
            Verb::Replace | Verb::Merge => {
                let before = self.objects.get(&key).ok_or_else(missing)?;
                let version = &content["metadata"]["resourceVersion"];
                if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
                    return Err(Refusal(409, "Conflict", format!("{key:?} has been modified")));
                }
                let mut after = before.clone();
                match (verb, of_status) {
                    (Verb::Replace, true) => after["status"] = content["status"].clone(),
                    (Verb::Replace, false) => after = content,
                    (_, true) => merge(&mut after["status"], &content["status"]),
                    (_, false) => {
                        let status = after["status"].clone();
                        merge(&mut after, &content);
                        after["status"] = status;
                    }
                }
                self.update(key, after, of_status)
            }
        }
    }

    fn apply(&mut self, key: Key, wanted: Value) -> Result<Value, Refusal> {
        let last = self.applied.insert(key.clone(), wanted.clone());
        let Some(before) = self.objects.get(&key) else {
            let mut object = wanted;
            object["metadata"]["namespace"] = json!(key.1);
            return self.create(&key.0, object);
        };
        let mut after = before.clone();
        if let Some(last) = last {
            take_out(&mut after, &last, &wanted);
        }
        overlay(&mut after, &wanted);
        self.update(key, after, false)
    }

    fn update(&mut self, key: Key, mut after: Value, of_status: bool) -> Result<Value, Refusal> {
        if let Some(webhook) = self.webhook {
            webhook(&key.0, &mut after);
        }
        let before = self.objects.get(&key).expect("it is there");
        check(&key, before, &after)?;
        for constant in ["uid", "creationTimestamp", "deletionTimestamp", "generation", "resourceVersion"] {
            let was = before["metadata"][constant].clone();
            let meta = after["metadata"].as_object_mut().expect("metadata");
            if was.is_null() {
                meta.remove(constant)
            } else {
                meta.insert(constant.to_owned(), was)
            };
        }
        if WITH_GENERATION.contains(&key.0.as_str()) && !of_status && before["spec"] != after["spec"] {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or_default();
            after["metadata"]["generation"] = json!(generation + 1);
        }
        let kept = after["metadata"]["finalizers"].as_array().is_some_and(|found| !found.is_empty());
        if !after["metadata"]["deletionTimestamp"].is_null() && !kept {
            self.objects.remove(&key);
            self.applied.remove(&key);
            self.version += 1;
            return Ok(after);
        }
        if *before == after {
            return Ok(after);
        }
        self.put(key, after)
    }

    fn delete_with(&mut self, key: Key, options: &Value) -> Result<Value, Refusal> {
        let Some(found) = self.objects.get(&key) else {
            return Err(Refusal(404, "NotFound", format!("{key:?} not found")));
        };
        let uid = &options["preconditions"]["uid"];
        if !uid.is_null() && *uid != found["metadata"]["uid"] {
            return Err(Refusal(409, "Conflict", format!("{key:?} is another one by now")));
        }
        let version = &options["preconditions"]["resourceVersion"];
        if !version.is_null() && *version != found["metadata"]["resourceVersion"] {
            return Err(Refusal(409, "Conflict", format!("{key:?} has been modified")));
        }
        let mut after = found.clone();
        let kept = found["metadata"]["finalizers"].as_array().is_some_and(|found| !found.is_empty());
        // A pod ends by itself, after a while.
        let at_once = key.0 != "pods" || options["gracePeriodSeconds"] == json!(0);
        if !kept && at_once {
            self.objects.remove(&key);
            self.applied.remove(&key);
            self.version += 1;
        } else if found["metadata"]["deletionTimestamp"].is_null() {
            after["metadata"]["deletionTimestamp"] = json!(NOW);
            if WITH_GENERATION.contains(&key.0.as_str()) {
                let generation = found["metadata"]["generation"].as_i64().unwrap_or_default();
                after["metadata"]["generation"] = json!(generation + 1);
            }
            return self.put(key, after);
        }
        Ok(after)
    }

    /// Takes an object away for good.
    pub fn erase(&mut self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        if self.objects.remove(&key).is_some() {
            self.version += 1;
        }
    }

    fn put(&mut self, key: Key, mut object: Value) -> Result<Value, Refusal> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key, object.clone());
        Ok(object)
    }
}

/// What the API server refuses, and what nobody may ever do.
fn check(key: &Key, before: &Value, after: &Value) -> Result<(), Refusal> {
    let invalid = |what: &str| Err(Refusal(422, "Invalid", format!("{key:?}: {what} is immutable")));
    match key.0.as_str() {
        "filesystemclusters" => {
            let id = &before["status"]["clusterId"];
            assert!(id.is_null() || *id == after["status"]["clusterId"], "a cluster's id was changed");
            Ok(())
        }
        "statefulsets" => {
            let frozen = ["volumeClaimTemplates", "selector", "serviceName", "podManagementPolicy"];
            match frozen.iter().find(|part| before["spec"][**part] != after["spec"][**part]) {
                Some(part) => invalid(part),
                None => Ok(()),
            }
        }
        "secrets" if before["immutable"] == json!(true) && before["data"] != after["data"] => invalid("data"),
        _ => Ok(()),
    }
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let Value::Object(into) = into else { return };
    for (key, value) in patch {
        if value.is_null() {
            into.remove(key);
        } else {
            merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// What was applied before and isn't any more.
fn take_out(from: &mut Value, last: &Value, wanted: &Value) {
    let (Value::Object(from), Value::Object(last)) = (from, last) else { return };
    for (key, value) in last {
        match wanted.get(key) {
            None => {
                from.remove(key);
            }
            Some(wanted) => {
                if let Some(found) = from.get_mut(key) {
                    take_out(found, value, wanted);
                }
            }
        }
    }
}

/// What is applied lies over what is there; lists are replaced.
fn overlay(into: &mut Value, wanted: &Value) {
    match (into, wanted) {
        (Value::Object(into), Value::Object(wanted)) => {
            for (key, value) in wanted {
                overlay(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, wanted) => *into = wanted.clone(),
    }
}
