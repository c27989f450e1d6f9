//! `kubectl atoll why`: from the trouble of a pod, a claim or a cluster to its causes.

use kube::{Client, ResourceExt};
use serde::Serialize;

use self::causes::{Cause, causes};
use self::facts::Facts;
use self::gather::{Subject, gather};
use crate::cli::{Format, WhyArgs};
use crate::exit::{Code, Failure};
use crate::output;

mod causes;
pub mod facts;
mod gather;
#[cfg(test)]
mod tests;

/// What is printed. The field names are a contract with programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// The objects that were followed, from the one that was asked about.
    chain: Vec<String>,
    /// What is wrong, the deepest first.
    causes: Vec<Cause>,
    /// What couldn't be read.
    unread: Vec<String>,
}

/// Finds the causes and shows them.
///
/// # Errors
/// If the subject doesn't exist, or something is wrong with it (after it was shown).
pub async fn run(client: Client, namespace: &str, args: &WhyArgs) -> Result<(), Failure> {
    let facts = gather(&client, namespace, &Subject::parse(&args.target)?).await?;
    let answer = Answer { chain: chain(&facts), causes: causes(&facts), unread: facts.unread };
    match args.output {
        Format::Table | Format::Wide => output::text(&screen(&answer))?,
        Format::Json => output::json(&answer)?,
        Format::Yaml => output::yaml(&answer)?,
        Format::Name => {
            let objects: Vec<String> =
                answer.causes.iter().map(|cause| cause.object.clone() + "\n").collect();
            output::text(&objects.concat())?;
        }
    }
    if answer.causes.is_empty() { Ok(()) } else { Err(Failure::new(Code::Unhealthy, "")) }
}

/// The objects that were followed.
fn chain(facts: &Facts) -> Vec<String> {
    let pod = facts
        .pod
        .iter()
        .map(|found| format!("pod {}/{}", found.pod.namespace().unwrap_or_default(), found.pod.name_any()));
    let claims = facts.claims.iter().map(facts::ClaimFacts::words);
    let clusters = facts.clusters.iter().map(facts::ClusterFacts::words);
    let sets = facts.clusters.iter().flat_map(|cluster| {
        cluster.sets.iter().map(|set| format!("StatefulSet {}/{}", cluster.namespace, set.name_any()))
    });
    pod.chain(claims).chain(clusters).chain(sets).collect()
}

fn screen(answer: &Answer) -> String {
    let mut text = answer.chain.join(" -> ") + "\n\n";
    if answer.causes.is_empty() {
        text += "Nothing is wrong, as far as can be read.\n";
    }
    for (number, cause) in answer.causes.iter().enumerate() {
        text += &format!(
            "{}. {:?}: {}: {}\n   What to do: {}\n",
            number + 1,
            cause.kind,
            cause.object,
            cause.problem,
            cause.remedy
        );
    }
    if answer.causes.len() > 1 {
        text += "\nBegin with the first: later ones often follow from it.\n";
    }
    if !answer.unread.is_empty() {
        text += "\nNot checked, since it can't be read:\n";
        text.extend(answer.unread.iter().map(|note| format!("  * {note}\n")));
    }
    text
}
