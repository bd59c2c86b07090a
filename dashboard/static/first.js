// Takes the first view away when Streamlit has drawn the page, then has what other pages need fetched and compiled. Streamlit's page is hidden meanwhile, so that nothing is read or reached twice.
(() => {
  const view = document.getElementById("first-view"), root = document.getElementById("root")
  if (view) {
    try { view.className = (localStorage.getItem("stActiveTheme-/-v2") || "").replaceAll('"', "").toLowerCase() } catch {}
    root.style.visibility = "hidden"
  }
  let gone = false
  const go = () => {
    if (gone) return
    gone = true
    seen.disconnect()
    view?.remove()
    root.style.visibility = ""
    requestIdleCallback?.(() => {
      for (const href of LATER) document.head.append(Object.assign(document.createElement("link"), { rel: "modulepreload", crossOrigin: "", href }))
    })
  }
  const seen = new MutationObserver(() => {
    if (root.querySelector("[data-test-script-state=notRunning] [data-testid=stHeading]") && !root.querySelector("[data-testid=stSkeleton]")) go()
  })
  seen.observe(root, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-test-script-state"] })
  setTimeout(go, 15000) // errors of Streamlit itself are seen at last
})()
