//! What a pod's HTTP endpoint says, by way of the API server: kubectl reaches nothing else.

use kube::Client;

/// Reads a page of a pod.
///
/// # Errors
/// What the API server says, or that the pod doesn't answer; in words.
pub async fn page(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<String, String> {
    let uri = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}");
    let request = http::Request::get(uri).body(Vec::new()).map_err(|error| error.to_string())?;
    client.request_text(request).await.map_err(|error| match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    })
}

/// A sample of a page of metrics: a name, its labels, its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name, with its suffix.
    pub name: String,
    /// The labels as they are written, without braces.
    pub labels: String,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// Whether a label has this value, whichever case it is written in.
    pub fn has(&self, label: &str, value: &str) -> bool {
        let wanted = format!("{label}=\"{value}\"").to_lowercase();
        self.labels.to_lowercase().split(',').any(|found| found == wanted)
    }
}

/// Reads a page in the text format of OpenMetrics. Lines that aren't samples are left out.
pub fn samples(page: &str) -> Vec<Sample> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let end = rest.find('}')?;
            (name, &rest[..end], &rest[end + 1..])
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, "", rest)
        }
    };
    // A value may be followed by a time and an exemplar.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.trim().to_owned(), labels: labels.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_and_without_labels() {
        let page = "# HELP a b\n# TYPE a counter\na_total 3\nb{kind=\"x\",direction=\"Read\"} 1.5 1700000000\nbroken{ 1\n\nc\n# EOF\n";
        let found = samples(page);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].name.as_str(), found[0].value), ("a_total", 3.0));
        assert!(found[1].has("direction", "read") && found[1].has("kind", "x") && !found[1].has("kind", "y"));
        assert_eq!(found[1].value, 1.5);
    }
}
