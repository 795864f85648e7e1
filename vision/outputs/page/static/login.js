// Shows why the form for the login appears again.
const failed = new URLSearchParams(location.search).get("login") === "failed";
document.getElementById("failed").hidden = !failed;
