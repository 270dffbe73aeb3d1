"""The paper's claims, tested in the pocket world: what is trained (`plan`), asked (`exam`), concluded (`claims`)."""
