//! Prints the custom resource definitions as YAML.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    print!("{}", atoll_crds::definition::document()?);
    Ok(())
}
